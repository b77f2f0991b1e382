"""Images that are read on demand by the workers of a torch `DataLoader`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrobnn.errors import DataError
from pyrobnn.io.launch import on_this_machine


class Reader(Protocol):
    """Where single images come from.

    Attributes:
        random: Whether reading an image twice can give two images, by the seed.
    """

    @property
    def random(self) -> bool: ...

    def __len__(self) -> int: ...

    def whole(self, row: int, seed: int = 0) -> Tensor:
        """An image in its own size, ``[C, h, w]``; what is random about reading it comes from the seed."""

    def fit(self, image: Tensor, row: int) -> Tensor:
        """The image in the size of the set, ``[C, H, W]``."""

    def state(self) -> list[str]:
        """What identifies the images without reading them all."""


#: What is done to one image ``[C, h, w]`` of any size with a seed; gives one in the size of the set.
Transform = Callable[[Tensor, int], Tensor]


def default_workers() -> int:
    """Processes that read images: one less than there are processors for each process of a run, at most eight."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(0, processors // on_this_machine() - 1))


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Stands where a tensor of images ``[N, C, H, W]`` could: it has a length and a shape, and rows can be read.

    Attributes:
        reader: Reads single images.
        size: ``(C, H, W)`` of every image.
        rows: Which images of the reader these are; None for all.
        dtype: Of the pixels.
        workers: Processes that read ahead; 0 reads in this one. Nothing but speed depends on it.
    """

    reader: Reader
    size: tuple[int, ...]
    rows: Tensor | None = None
    dtype: torch.dtype = torch.uint8
    workers: int | None = None

    def __len__(self) -> int:
        return len(self.reader) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """``[N, C, H, W]``, as of a tensor."""
        return torch.Size((len(self), *self.size))

    @property
    def ndim(self) -> int:
        """Axes, with that of the images."""
        return 1 + len(self.size)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Some images, read now and in this process."""
        chosen = torch.arange(len(self))[rows]
        return next(iter(StreamedImages(self.reader, self.size, self.rows, self.dtype, 0).batches([chosen])))

    def select(self, rows: Tensor) -> StreamedImages:
        """Some of the images, not read yet."""
        return StreamedImages(
            self.reader, self.size, rows if self.rows is None else self.rows[rows], self.dtype, self.workers
        )

    def joined(self, other: StreamedImages) -> StreamedImages:
        """These images and those of another part."""
        both = _Readers((self, other))
        return StreamedImages(both, self.size, None, self.dtype, self.workers)

    def state(self) -> list[str]:
        """What identifies the images without reading them all."""
        return self.reader.state()

    def batches(
        self, chunks: Sequence[Tensor], seeds: Tensor | None = None, transform: Transform | None = None
    ) -> Iterator[Tensor]:
        """Images of each chunk of rows, in order, read ahead by the workers.

        Args:
            chunks: Rows of each batch.
            seeds: One for each row of the set, for the transform. An image depends on its row and seed alone, so
                neither the number of workers nor the place where a pass begins changes it.
            transform: See `Transform`; None brings images to the size of the set.
        """
        workers = default_workers() if self.workers is None else self.workers
        wanted = _Wanted(chunks, seeds)
        loader = DataLoader(
            _Images(self, transform),
            sampler=wanted,
            batch_size=None,  # an index is a whole batch
            num_workers=min(workers, len(wanted)),
            generator=torch.Generator(),  # else the loader draws from the caller's random state
            prefetch_factor=2 if min(workers, len(wanted)) else None,
        )
        for batch in loader:
            if isinstance(batch, DataError):  # sent by a worker: raised there, it would come as a page of text
                raise batch
            yield batch


class _Readers:
    """The images of several parts one after the other."""

    def __init__(self, parts: Sequence[StreamedImages]) -> None:
        self.parts = parts

    @property
    def random(self) -> bool:
        return any(part.reader.random for part in self.parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _place(self, row: int) -> tuple[Reader, int]:
        for part in self.parts:
            if row < len(part):
                return part.reader, row if part.rows is None else int(part.rows[row])
            row -= len(part)
        raise IndexError(row)

    def whole(self, row: int, seed: int = 0) -> Tensor:
        reader, row = self._place(row)
        return reader.whole(row, seed)

    def fit(self, image: Tensor, row: int) -> Tensor:
        reader, row = self._place(row)
        return reader.fit(image, row)

    def state(self) -> list[str]:
        return [line for part in self.parts for line in part.state()]


class _Wanted:
    """Rows and seeds of each batch, made when they are asked for: a list of a million would be larger than the images."""

    def __init__(self, chunks: Sequence[Tensor], seeds: Tensor | None) -> None:
        self.chunks, self.seeds = chunks, seeds

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for chunk in self.chunks:
            drawn = [0] * len(chunk) if self.seeds is None else self.seeds[chunk].tolist()
            yield list(zip(chunk.tolist(), drawn, strict=True))


class _Images(Dataset[Any]):
    """Whole batches by (row, seed), as a `DataLoader` asks for them."""

    def __init__(self, images: StreamedImages, transform: Transform | None) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, wanted: Any) -> Tensor | DataError:
        try:
            return self._read(wanted)
        except DataError as error:
            return error

    def _read(self, wanted: Sequence[tuple[int, int]]) -> Tensor:
        reader = self.images.reader
        batch = torch.empty((len(wanted), *self.images.size), dtype=self.images.dtype)
        for place, (number, seed) in enumerate(wanted):
            row = number if self.images.rows is None else int(self.images.rows[number])
            image = reader.whole(row, seed)
            if image.dtype != batch.dtype:
                raise DataError(
                    f"expected all images to be {batch.dtype}, as those looked at before, got {image.dtype} at number {row}"
                )
            batch[place] = reader.fit(image, row) if self.transform is None else self.transform(image, seed)
        return batch
