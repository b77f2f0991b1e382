"""Images in memory: raw pixels with their labels, served as normalised batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrobnn.data.augment import Augment
from pyrobnn.errors import DataError


class Batch(NamedTuple):
    """Some examples of a split.

    Attributes:
        x: Normalised float32 images ``[B, C, H, W]``.
        y: int64 labels ``[B]``.
        view: int64 ``[B]``, which image this is: ``views * row + (1 if mirrored else 0)``, a row of
            :meth:`Split.views` whatever was shifted or hidden.
    """

    x: Tensor
    y: Tensor
    view: Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set (train, valid or test).

    Attributes:
        images: ``[N, C, H, W]``, uint8 pixels, or float32 for data sets that give floats.
        labels: ``[N]`` int64, from 0.
        mean: Mean per channel, of uint8 pixels divided by 255 or of the floats as they are.
        std: Standard deviation per channel, likewise.
        augment: What ``batches(augment=True)`` does; None does nothing.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Goes through the images once.

        Args:
            batch_size: Images per batch; the last batch holds the rest.
            generator: Shuffles, and is the source of the augmentation. It is an argument so that its state
                can be part of a checkpoint. None keeps the order.
            augment: Augment the images; needs the generator.
            device: Where the batches go. Raw pixels are moved, the rest happens there.
            channels_last: Memory layout of the images.
            drop_last: Leave out an incomplete last batch.

        Yields:
            Normalised float32 images ``[B, C, H, W]`` and int64 labels ``[B]``.

        Raises:
            DataError: The batch size is below 1, or `augment` is asked for without a generator.
        """
        batches = self.examples(
            batch_size,
            generator=generator,
            augment=augment,
            device=device,
            channels_last=channels_last,
            drop_last=drop_last,
        )
        return ((batch.x, batch.y) for batch in batches)

    def examples(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
        drop_last: bool = False,
        mirrored: Tensor | None = None,
    ) -> Iterator[Batch]:
        """As :meth:`batches`, with the view that each image is.

        `mirrored`, bool ``[N]`` by row, says which images augmentation mirrors where it mirrors any; None draws them.
        """
        if batch_size < 1:
            raise DataError(f"expected a batch size of at least 1, got {batch_size}")
        if augment and generator is None:
            raise DataError("augmentation is random: give batches(...) a torch.Generator too")
        if mirrored is not None and mirrored.shape != (len(self),):
            raise DataError(f"expected one mirror flag for each of {len(self)} images, got {tuple(mirrored.shape)}")
        return self._examples(batch_size, generator, augment, torch.device(device), channels_last, drop_last, mirrored)

    def _examples(
        self,
        batch_size: int,
        generator: torch.Generator | None,
        augment: bool,
        device: torch.device,
        channels_last: bool,
        drop_last: bool,
        mirrored: Tensor | None,
    ) -> Iterator[Batch]:
        count, views = len(self), self.num_views
        layout = torch.channels_last if channels_last else torch.contiguous_format
        order = torch.arange(count)
        if generator is not None:
            order = torch.randperm(count, generator=generator, device=generator.device).cpu()
        for start in range(0, count, batch_size):
            if drop_last and start + batch_size > count:
                return
            rows = order[start : start + batch_size]
            place = slice(start, start + batch_size) if generator is None else rows  # a slice copies nothing
            images, labels, view = self.images[place].to(device), self.labels[place].to(device), views * rows.to(device)
            if augment and generator is not None and self.augment is not None:
                images, flipped = self.augment.draw(images, generator, None if mirrored is None else mirrored[rows])
                view = view if flipped is None else view + flipped
            yield Batch(self.normalise(images).contiguous(memory_format=layout), labels, view)

    @property
    def num_views(self) -> int:
        """Versions of each image that augmentation makes, apart from shifts and hidden squares: 2 with mirror images, else 1."""
        return 1 if self.augment is None else self.augment.views

    def views(self, batch_size: int, *, device: str | torch.device = "cpu") -> Iterator[Tensor]:
        """Every image and its mirror image (if augmentation mirrors), not shifted, in the order of `Batch.view`.

        Yields:
            Normalised float32 images ``[B * num_views, C, H, W]``, channels last.
        """
        for x, _ in self.batches(batch_size, device=device, channels_last=True):
            yield x if self.num_views == 1 else torch.stack([x, x.flip(3)], 1).flatten(0, 1)

    def normalise(self, images: Tensor) -> Tensor:
        """Turns raw images ``[B, C, H, W]`` of this set into what a network sees (float32)."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        return (images.to(torch.float32) - mean * scale) / (std * scale)

    def take(self, count: int) -> Split:
        """At most `count` images, evenly spaced, so that a set sorted by class stays balanced."""
        if count < 1:
            raise DataError(f"expected at least 1 image to take, got {count}")
        count = min(count, len(self))
        rows = torch.arange(count) * len(self) // max(count, 1)
        return replace(self, images=self.images[rows], labels=self.labels[rows])


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

    @property
    def example(self) -> Tensor:
        """Two normalised training images ``[2, C, H, W]``, for tracing a network."""
        return self.train.normalise(self.train.images[:2])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

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


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of images ``[N, C, H, W]``; uint8 counts as 0-1.

    A channel that is constant gets a standard deviation of 1, so that it can be divided by.

    >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    ((0.5,), (0.5,))
    """
    means, stds = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].numpy()
        if images.dtype == torch.uint8:
            # From the histogram: exact, and it needs no copy of the images as floats.
            counts = np.bincount(pixels.reshape(-1), minlength=256)
            values = np.arange(256) / 255.0
            mean = float(np.average(values, weights=counts))
            variance = float(np.average((values - mean) ** 2, weights=counts))
        else:
            mean = float(pixels.mean(dtype=np.float64))
            variance = float(pixels.var(dtype=np.float64))
        means.append(mean)
        stds.append(variance**0.5 if variance > 1e-12 else 1.0)
    return tuple(means), tuple(stds)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sets aside the same fraction of every class.

    Args:
        labels: ``[N]`` int64.
        fraction: Share to set aside; a class of two or more images gives at least one and keeps at least one.
        seed: Decides which; the caller's random state is not touched.

    Returns:
        Sorted row numbers of what stays and of what is set aside.

    >>> kept, aside = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
    >>> len(kept), len(aside)
    (6, 2)
    """
    generator = torch.Generator().manual_seed(seed)
    classes, sizes = labels.unique(return_counts=True)
    quota = sizes.double() * fraction
    wanted = quota.floor().long()
    # Largest remainders, so that the parts add up: 6,000 of the 60,000 MNIST images, not 5,999.
    left = round(len(labels) * fraction) - int(wanted.sum())
    wanted[(quota - wanted).argsort(descending=True, stable=True)[: max(left, 0)]] += 1
    if fraction > 0:
        wanted = torch.where(sizes > 1, torch.minimum(wanted.clamp(min=1), sizes - 1), 0)
    aside = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in zip(classes.tolist(), wanted.tolist(), strict=True):
        rows = (labels == label).nonzero().flatten()
        aside[rows[torch.randperm(len(rows), generator=generator)[:number]]] = True
    return (~aside).nonzero().flatten(), aside.nonzero().flatten()


def fingerprint(*splits: Split) -> str:
    """Twelve hexadecimal digits from all labels and up to 256 evenly spaced images of each split."""
    digest = hashlib.sha256()
    for split in splits:
        sample = split.take(256) if len(split) else split
        digest.update(f"{tuple(split.images.shape)} {split.images.dtype}".encode())
        digest.update(np.ascontiguousarray(sample.images.numpy()).tobytes())
        digest.update(split.labels.numpy().tobytes())
    return digest.hexdigest()[:12]
