"""`Data`: a data set with a training, a validation and a test part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrobnn.data.augment import Augment
from pyrobnn.data.inputs import Packing
from pyrobnn.data.split import Batch, Split
from pyrobnn.data.statistics import channel_statistics, fingerprint, stratified_split
from pyrobnn.errors import DataError
from pyrobnn.io.processes import current

__all__ = ["Batch", "Data", "Split", "channel_statistics", "fingerprint", "stratified_split"]


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in three parts, with what belongs to all of them.

    Attributes:
        name: What it was loaded as.
        train: The training images without the validation part.
        valid: The validation part; empty if asked for.
        test: The test images.
        num_classes: Labels are ``0 .. num_classes - 1``.
        mean: Mean per channel of the training images (see `Split`).
        std: Standard deviation per channel.
        augmentation: Applied to training batches on request.
        fingerprint: A short hash of the images and labels of all three parts.
        classes: Names of the classes; empty where the source has none.
        task: What the targets are: ``"classification"`` (a class per image, ``[N]`` int64), ``"segmentation"`` (a class
            per pixel, ``[N, H, W]`` int64, -100 where there is none), ``"multilabel"`` (``[N, K]`` of 0 and 1) or
            ``"regression"`` (``[N, D]`` float32). `num_classes` is the number of outputs that a network needs.
        resized: How images were made alike, in words; empty if they were not changed.
        packing: How several inputs lie in the vectors ``[1, F]`` that stand for images; None for one input.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augment | None
    fingerprint: str
    classes: tuple[str, ...] = ()
    task: str = "classification"
    resized: str = ""
    packing: Packing | None = None

    def __repr__(self) -> str:
        return f"Data({self.name!r}: {self.describe()})"

    @property
    def example(self) -> Tensor:
        """Two normalised training images ``[2, C, H, W]``, for tracing a network."""
        return self.train.normalise(self.train.images[:2])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``; ``(C, L)`` for signals, ``(C, D, H, W)`` for volumes."""
        return tuple(self.train.images.shape[1:])

    def describe(self) -> str:
        """One line for people: how many images of which classes and size.

        >>> from pyrobnn.data import load_data
        >>> load_data("digits").describe()
        '1,797 images (1,078 train, 120 valid, 599 test), 10 classes of 104 to 110 training images, 1x8x8'
        """
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        counts = ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
        shape = "x".join(map(str, self.image_shape)) if self.packing is None else f"{len(self.packing)} inputs"
        words = [f"{sum(map(len, parts.values())):,} images ({counts})", self._targets(), shape]
        if not isinstance(self.train.images, Tensor):
            words.append("read when needed")
        return ", ".join([*words, *([self.resized] if self.resized else [])])

    def _targets(self) -> str:
        if self.task == "classification":
            sizes = self.train.labels.bincount(minlength=self.num_classes).tolist()
            if len(sizes) > 5:
                return f"{len(sizes)} classes of {min(sizes):,} to {max(sizes):,} training images"
            return f"{len(sizes)} classes {'/'.join(map(str, sizes))}"
        return {
            "segmentation": f"{self.num_classes} classes per pixel",
            "multilabel": f"{self.num_classes} labels per image",
        }.get(self.task, f"{self.num_classes} numbers per image")

    def without_validation(self) -> Data:
        """All training images in the training part, none for validation."""
        none = self.valid.select(torch.arange(0)) if len(self.valid) else self.valid
        return replace(self, train=self.train.joined(self.valid) if len(self.valid) else self.train, valid=none)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> Data:
        """The same images, normalised with other constants, such as those a weights file was trained with.

        Raises:
            DataError: Not one positive `std` and one `mean` per channel.
        """
        channels = self.image_shape[0]
        if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
            raise DataError(
                f"expected {channels} means and {channels} positive stds, one per channel, got mean "
                f"{tuple(mean)} and std {tuple(std)}"
            )
        means, stds = tuple(float(value) for value in mean), tuple(float(value) for value in std)
        return replace(
            self,
            train=replace(self.train, mean=means, std=stds),
            valid=replace(self.valid, mean=means, std=stds),
            test=replace(self.test, mean=means, std=stds),
            mean=means,
            std=stds,
        )


def same_in_all(data: Data) -> None:
    """All processes of a run have the same images, kept in the same way: each takes its part of every batch.

    Raises:
        DataError: They have not; in all of them.
    """
    found = current().each(data.fingerprint)
    if len(set(found)) > 1:
        raise DataError(
            f"expected the same data in all {len(found)} processes, got {', '.join(found)} (fingerprints): load the same source in "
            "each, with stream=True or stream=False where memory decides, after torch.manual_seed where reading is random"
        )
