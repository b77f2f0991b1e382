"""Torch data sets whose items are read on demand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from pyrobnn.data.items import dataset_of, image_of, is_pair, pair_of, reason, rows_of, stacked, target_of
from pyrobnn.data.memory import room_for_images
from pyrobnn.data.notes import Notes
from pyrobnn.data.pictures import DEFAULT_SIZE, bits_to_drop, eight_bits, resized, with_channels
from pyrobnn.data.stream import StreamedImages, default_workers
from pyrobnn.errors import DataError

#: Items that are looked at to find out what a data set holds, before it is streamed.
PROBES = 64


def too_large(source: Any) -> bool:
    """Whether the images of a data set do not fit in memory, judged by the first."""
    dataset = dataset_of(source)
    if is_pair(source) or not isinstance(dataset, Dataset) or not hasattr(dataset, "__len__") or not len(dataset):
        return False
    try:
        array = image_of(pair_of(dataset[0], 0, type(dataset).__name__)[0], "", Notes())[0]
    except Exception:  # reading says what is wrong with it
        return False
    return array.nbytes * len(dataset) > room_for_images()


@dataclass(frozen=True)
class DatasetReader:
    """Reads single items of a map-style data set.

    Attributes:
        dataset: The data set.
        pictures: Whether it gives pictures, which are made alike; else its images must be alike.
        shape: ``(C, H, W)`` of every image.
        drop: Bits that pixels of 16 bits lose.
        signals: Whether items ``[C, L]`` are signals.
    """

    dataset: Any
    pictures: bool
    shape: tuple[int, ...]
    drop: int
    signals: bool = False
    random: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, row: int, seed: int) -> tuple[Any, Any]:
        """An item, with what its transforms draw taken from the seed."""
        where = type(self.dataset).__name__
        try:
            with _seeded(seed):
                return pair_of(self.dataset[row], row, where)
        except DataError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise DataError(f"{where}: reading item {row} raised {type(error).__name__}: {reason(error)}") from error

    def whole(self, row: int, seed: int = 0) -> Tensor:
        """An image in its own size, ``[C, h, w]``."""
        array = eight_bits(
            image_of(self.item(row, seed)[0], type(self.dataset).__name__, Notes(), self.signals)[0], self.drop
        )
        return torch.from_numpy(np.ascontiguousarray(with_channels(array, self.shape[0]) if self.pictures else array))

    def fit(self, image: Tensor, row: int) -> Tensor:
        """An image in the size of the set, ``[C, H, W]``."""
        if self.pictures and tuple(image.shape) != self.shape and self.shape[1] == self.shape[2]:
            image = torch.from_numpy(resized(image.numpy(), self.shape[1]))
        if tuple(image.shape) != self.shape:
            raise DataError(
                f"{type(self.dataset).__name__}: expected images {list(self.shape)} as the others, got {list(image.shape)} "
                f"at number {row}; resize them"
            )
        return image

    def state(self) -> list[str]:
        """Its name and length: the labels tell more."""
        return [f"{type(self.dataset).__name__} {len(self.dataset)}"]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global random states of torch, numpy and Python set for a moment."""
    kept, kept_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what users' transforms draw from
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_numpy)  # noqa: NPY002


def read_streamed(
    sources: dict[str, Any], image_size: int | None, signals: bool, notes: Notes
) -> tuple[dict[str, tuple[StreamedImages, np.ndarray]], str]:
    """By part images that are read when they are needed and targets in memory; how they are made alike."""
    datasets: dict[str, Any] = {}
    for part, source in sources.items():
        dataset = dataset_of(source)
        if not isinstance(dataset, Dataset) or not hasattr(dataset, "__len__"):
            raise DataError(
                f"{part}: expected a data set with a length to stream, got {type(source).__name__}: put it into a DataLoader"
            )
        if not len(dataset):
            raise DataError(f"{type(dataset).__name__}: expected images, got an empty data set")
        if isinstance(source, DataLoader) and (rows := rows_of(source, notes, part)) != range(len(dataset)):
            dataset = Subset(dataset, list(rows))
        datasets[part] = dataset
    probes, pictures = [], True
    dtypes: dict[torch.dtype, str] = {}  # and the part that has it
    for part, dataset in datasets.items():
        reader = DatasetReader(dataset, False, (), 0, signals)
        for k in range(min(PROBES, len(dataset))):
            array, picture = image_of(
                reader.item(k * len(dataset) // min(PROBES, len(dataset)), 0)[0], type(dataset).__name__, notes, signals
            )
            probes.append(array)
            pictures &= picture
            dtype = torch.float32 if array.dtype == np.float32 else torch.uint8
            if dtypes.setdefault(dtype, part) and len(dtypes) > 1:
                raise DataError(
                    f"expected images of one type, got {' and '.join(f'{kind} in the {where} part' for kind, where in dtypes.items())}: "
                    "use the same transforms in all"
                )
    deep = [int(array.max()) for array in probes if array.dtype == np.uint16]
    drop = bits_to_drop(max(deep), notes) if deep else 0
    sizes = {array.shape[1:] for array in probes}
    if image_size is not None and not pictures:
        raise DataError("image_size is for pictures, and this data set gives arrays: resize them in its transform")
    if image_size is None and pictures and len(sizes) > 1:
        image_size = DEFAULT_SIZE
        notes.add(f"pictures of {len(sizes)} sizes are resized to {image_size}x{image_size}: choose with image_size")
    size = next(iter(sizes)) if image_size is None else (image_size, image_size)
    shape = (max(len(array) for array in probes), *size)
    found = {}
    for part, dataset in datasets.items():
        reader = DatasetReader(dataset, pictures, shape, drop, signals)
        found[part] = (StreamedImages(reader, shape, None, next(iter(dtypes))), _all_targets(reader))
    words = "" if image_size is None or sizes == {(image_size, image_size)} else f"resized to {image_size}x{image_size}"
    return found, words


class _Targets(Dataset[Any]):
    def __init__(self, reader: DatasetReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, row: int) -> Any:
        try:
            return target_of(self.reader.item(row, 0)[1], type(self.reader.dataset).__name__)
        except DataError as error:
            return error


def _all_targets(reader: DatasetReader) -> np.ndarray:
    """The targets of a data set: its attribute `targets` where that says what the items say, else by reading it once."""
    where, count = type(reader.dataset).__name__, len(reader)
    listed = getattr(reader.dataset, "targets", None)
    if isinstance(listed, Tensor):
        listed = listed.numpy()
    if (
        isinstance(listed, list | np.ndarray)
        and len(listed) == count
        and getattr(reader.dataset, "target_transform", None) is None
    ):
        found = np.asarray(listed)
        probes = {k * count // min(PROBES, count) for k in range(min(PROBES, count))}
        if found.ndim == 1 and all(found[row] == target_of(reader.item(row, 0)[1], where) for row in probes):
            return found
    loader = DataLoader(
        _Targets(reader),
        batch_size=None,
        num_workers=default_workers() if count > 1000 else 0,
        generator=torch.Generator(),
    )
    targets = []
    for target in loader:
        if isinstance(target, DataError):
            raise target
        targets.append(target_of(target, where))
        if targets[0].nbytes * count > room_for_images():
            raise DataError(
                f"{where}: its targets do not fit in memory: put it into a DataLoader and give that with stream=True"
            )
    return stacked(targets, where)
