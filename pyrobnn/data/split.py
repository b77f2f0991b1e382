"""One part of a data set: raw pixels with their targets, served as normalised batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyrobnn.data.augment import Augment, turned
from pyrobnn.data.device import ahead, resident, rows_of
from pyrobnn.data.loader import LoaderImages
from pyrobnn.data.stream import StreamedImages, Transform
from pyrobnn.errors import DataError
from pyrobnn.io.processes import part_of


class Batch(NamedTuple):
    """Some examples of a split.

    Attributes:
        x: Normalised float32 images ``[B, C, H, W]``.
        y: Targets ``[B, ...]``: int64 classes ``[B]``, or see `Data.task`.
        view: int64 ``[B]``, which image this is: ``views * row + (1 if mirrored else 0)``, a row of
            :meth:`Split.views` whatever was shifted or hidden. None where images have no fixed rows.
        total: Examples of the batch in all processes that share it.
    """

    x: Tensor
    y: Tensor
    view: Tensor | None
    total: int


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set (train, valid or test).

    Attributes:
        images: ``[N, C, H, W]``, uint8 pixels, or float32 for data sets that give floats. A tensor, or what reads
            them when they are needed (see :mod:`pyrobnn.data.stream`).
        labels: The targets: classes ``[N]`` int64 from 0, or see `Data.task`.
        mean: Mean per channel, of uint8 pixels divided by 255 or of the floats as they are.
        std: Standard deviation per channel, likewise.
        augment: What ``batches(augment=True)`` does; None does nothing.
    """

    images: Tensor | StreamedImages | LoaderImages
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self):,} images of shape {tuple(self.images.shape[1:])})"

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
        drop_last: bool = False,
        turns: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Goes through the images once.

        Args:
            batch_size: Images per batch; the last batch holds the rest. A `DataLoader` used as it is keeps its own.
            generator: Shuffles, and is the source of the augmentation. It is an argument so that its state
                can be part of a checkpoint. None keeps the order.
            augment: Augment the images; needs the generator.
            device: Where the batches go. A set in memory that fits there is copied once (:mod:`pyrobnn.data.device`), of
                others raw pixels are, batch by batch; the rest happens there.
            channels_last: Memory layout of the images.
            drop_last: Leave out an incomplete last batch.
            turns: ``(k, n)`` gives batch k, k + n, k + 2 n and so on, for n processes that take turns.

        Yields:
            Normalised float32 images ``[B, C, H, W]`` and their targets.

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
            turns=turns,
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
        resume: tuple[Tensor, int] | None = None,
        turns: tuple[int, int] = (0, 1),
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """As :meth:`batches`, with the view that each image is.

        Args:
            batch_size, generator, augment, device, channels_last, drop_last, turns: As for :meth:`batches`.
            mirrored: bool ``[N]`` by row, which images augmentation mirrors where it mirrors any; None draws them.
            resume: Goes on in the middle of a pass: the state that the generator had when the pass began, and how
                many batches it has given. The generator itself must be as it was after them.
            share: ``(rank, size)`` gives the part of every batch that a process takes
                (:func:`~pyrobnn.io.processes.part_of`). The generator moves as for whole batches, and an image is
                augmented as it would be in them.
        """
        if batch_size < 1:
            raise DataError(f"expected a batch size of at least 1, got {batch_size}")
        if generator is None and (augment or resume is not None):
            raise DataError("augmentation is random: give batches(...) a torch.Generator too")
        if mirrored is not None and mirrored.shape != (len(self),):
            raise DataError(f"expected one mirror flag for each of {len(self)} images, got {tuple(mirrored.shape)}")
        if augment and self.augment is not None:
            if self.augment.moves and self.labels.ndim > 2:
                raise DataError(
                    "shift and crop would move pixels away from their classes: with a class per pixel, mirror only"
                )
            if isinstance(self.images, LoaderImages) and self.augment.transform((1, 1)) is not None:
                raise DataError(
                    "crop and colour belong into the DataLoader that is used as it is, as its own transforms"
                )
        device, layout = torch.device(device), torch.channels_last if channels_last else torch.contiguous_format
        start = generator
        if resume is not None:
            start = torch.Generator()
            start.set_state(resume[0])
        done = 0 if resume is None else resume[1]
        if isinstance(self.images, LoaderImages):
            return self._loaded(self.images, generator, start, done, augment, device, layout, turns, share)
        return self._examples(
            batch_size, generator, start, done, augment, device, layout, drop_last, mirrored, turns, share
        )

    def _loaded(
        self,
        source: LoaderImages,
        generator: torch.Generator | None,
        start: torch.Generator | None,
        done: int,
        augment: bool,
        device: torch.device,
        layout: torch.memory_format,
        turns: tuple[int, int],
        share: tuple[int, int],
    ) -> Iterator[Batch]:
        seed = 0 if start is None else int(torch.randint(2**62, (1,), generator=start))
        totals: list[int] = []

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for raw, targets in itertools.islice(source.batches(seed), done + turns[0], None, turns[1]):
                totals.append(len(raw))
                own = slice(*part_of(len(raw), *share))
                yield raw[own], targets[own]

        for number, (images, y) in enumerate(ahead(parts(), device)):
            total = totals[number]
            place = slice(*part_of(total, *share))
            if augment and self.augment is not None and generator is not None:
                images, flipped = self.augment.draw(images, generator, place=place, total=total)
                y = turned(y, flipped)
            yield Batch(_laid_out(self.normalise(images), layout), y, None, total)

    def _examples(
        self,
        batch_size: int,
        generator: torch.Generator | None,
        start: torch.Generator | None,
        done: int,
        augment: bool,
        device: torch.device,
        layout: torch.memory_format,
        drop_last: bool,
        mirrored: Tensor | None,
        turns: tuple[int, int],
        share: tuple[int, int],
    ) -> Iterator[Batch]:
        count, views = len(self), self.num_views
        order = torch.arange(count)
        if start is not None:
            order = torch.randperm(count, generator=start, device=start.device).cpu()
        chunks = [order[k : k + batch_size] for k in range(0, count, batch_size)]
        if drop_last and chunks and len(chunks[-1]) < batch_size:
            chunks.pop()
        change = self.augment if augment else None
        transform = None if change is None else change.transform(self.images.shape[2:])
        seeds = None  # of what is random about one image apart from the others: by row, and all when the pass begins
        random = isinstance(self.images, StreamedImages) and self.images.reader.random
        if augment and start is not None and (transform is not None or random):
            seeds = torch.randint(2**62, (count,), generator=start, device=start.device).cpu()
        chunks = chunks[done + turns[0] :: turns[1]]
        totals = [len(chunk) for chunk in chunks]
        places = [slice(*part_of(total, *share)) for total in totals]
        chunks = [chunk[place] for chunk, place in zip(chunks, places, strict=True)]
        raw = self._raw(chunks, generator is None, seeds, transform, device)
        for rows, images, place, total in zip(chunks, raw, places, totals, strict=True):
            labels, view = rows_of(self.labels, rows, device), views * rows.to(device)
            if change is not None and generator is not None:
                sides = None if mirrored is None else mirrored[rows]
                images, flipped = change.draw(images, generator, sides, place=place, total=total)
                view = view if flipped is None else view + flipped
                labels = turned(labels, flipped)
            yield Batch(_laid_out(self.normalise(images), layout), labels, view, total)

    def _raw(
        self,
        chunks: list[Tensor],
        in_order: bool,
        seeds: Tensor | None,
        transform: Transform | None,
        device: torch.device,
    ) -> Iterator[Tensor]:
        """Raw images by rows, each through the transform with its seed if there is one."""
        if isinstance(self.images, StreamedImages):
            yield from (part for (part,) in ahead(zip(self.images.batches(chunks, seeds, transform)), device))
            return
        assert isinstance(self.images, Tensor)
        # A slice copies nothing.
        places = [slice(int(rows[0]), int(rows[-1]) + 1) if in_order else rows for rows in chunks]
        images, held = self.images, resident(self.images, device)
        if held is not None:
            parts = (held[place if isinstance(place, slice) else place.to(device)] for place in places)
        else:
            parts = (part for (part,) in ahead(((images[place],) for place in places), device))
        for part, rows in zip(parts, chunks, strict=True):
            if transform is not None and seeds is not None:
                yield torch.stack([transform(x, int(seeds[row])) for x, row in zip(part, rows, strict=True)])
            else:
                yield part

    def steps(self, batch_size: int) -> int:
        """Batches of one pass."""
        if isinstance(self.images, LoaderImages):
            return self.images.steps
        return math.ceil(len(self) / batch_size)

    @property
    def indexed(self) -> bool:
        """Whether images have fixed rows, so that `Batch.view` says which one each is."""
        return not isinstance(self.images, LoaderImages)

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
        """Turns raw images ``[B, C, ...]`` of this set into what a network sees (float32)."""
        around = (1, -1, *(1,) * (images.ndim - 2))
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device).view(around)
        std = torch.tensor(self.std, dtype=torch.float32, device=images.device).view(around)
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        return (images.to(torch.float32) - mean * scale) / (std * scale)

    def select(self, rows: Tensor) -> Split:
        """The images of some rows, in their order."""
        if isinstance(self.images, LoaderImages):
            raise DataError("rows of a DataLoader that is used as it is cannot be chosen: give its data set")
        images = self.images.select(rows) if isinstance(self.images, StreamedImages) else self.images[rows]
        return replace(self, images=images, labels=self.labels[rows])

    def take(self, count: int) -> Split:
        """At most `count` images, evenly spaced, so that a set sorted by class stays balanced."""
        if count < 1:
            raise DataError(f"expected at least 1 image to take, got {count}")
        count = min(count, len(self))
        if isinstance(self.images, LoaderImages):
            return replace(self, images=self.images[:count], labels=self.labels[:count])
        return self.select(torch.arange(count) * len(self) // max(count, 1))

    def joined(self, other: Split) -> Split:
        """The images of this split and of another one of the same data set, as this one serves them."""
        images: Tensor | StreamedImages
        if isinstance(self.images, StreamedImages) and isinstance(other.images, StreamedImages):
            images = self.images.joined(other.images)
        elif isinstance(self.images, Tensor) and isinstance(other.images, Tensor):
            images = torch.cat([self.images, other.images])
        else:
            raise DataError("images of a DataLoader that is used as it is cannot be put together: give its data set")
        return replace(self, images=images, labels=torch.cat([self.labels, other.labels]))


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Signals and volumes have one layout only."""
    return x.contiguous(memory_format=layout if x.ndim == 4 else torch.contiguous_format)
