"""A user's own `DataLoader`, used as it is: its batches, workers and transforms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrobnn.data.inputs import Packing, several
from pyrobnn.data.items import refuse_shared, samplers_of
from pyrobnn.data.targets import as_targets
from pyrobnn.errors import DataError


@dataclass(frozen=True, eq=False)
class LoaderImages:
    """Stands where a tensor of images could, for a loader whose images come in an order of its own.

    Attributes:
        loader: The `DataLoader`.
        task: What its targets are (see `Data.task`).
        count, steps: Images and batches of a pass.
        size: ``(C, H, W)`` of every image.
        dtype: Of the pixels.
        packing: How several inputs lie in vectors.
    """

    loader: DataLoader[Any]
    task: str
    count: int
    steps: int
    size: tuple[int, ...]
    dtype: torch.dtype
    packing: Packing | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> torch.Size:
        """``[N, C, H, W]``, as of a tensor."""
        return torch.Size((self.count, *self.size))

    @property
    def ndim(self) -> int:
        """Axes, with that of the images."""
        return 1 + len(self.size)

    def __getitem__(self, rows: slice) -> Tensor:
        """The first images of a pass in which nothing is drawn anew."""
        wanted = len(range(self.count)[rows])
        found: list[Tensor] = []
        if wanted:
            for x, _ in self.batches(0):
                found.append(x)
                if sum(map(len, found)) >= wanted:
                    break
        return torch.cat(found)[:wanted] if found else torch.empty((0, *self.size), dtype=self.dtype)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raw images and targets of one pass. What the loader draws, of torch or of its own generator, depends on the seed."""
        return _batches(self.loader, self.task, seed, self.packing)


def read_loader(
    loader: DataLoader[Any], part: str, task: str | None
) -> tuple[LoaderImages, Tensor, tuple[Tensor, Tensor]]:
    """Goes through a loader once, to count and to keep the targets.

    Returns:
        The images, their targets in the order of the pass with seed 0, and mean and standard deviation per channel.

    Raises:
        DataError: No batches of images and targets, or batches that do not fit each other.
    """
    refuse_shared(loader, part)
    targets: list[Tensor] = []
    count = steps = 0
    size: tuple[int, ...] | None = None
    dtype, sums = torch.uint8, (torch.zeros(()), torch.zeros(()))
    packing = _packing(loader)
    for x, y in _batches(loader, task, 0, packing):
        if size is None:
            size, dtype = tuple(x.shape[1:]), x.dtype
        if tuple(x.shape[1:]) != size or x.dtype != dtype:
            raise DataError(
                f"{part}: expected batches of images {list(size)} of {dtype}, got {list(x.shape[1:])} of {x.dtype}"
            )
        around = tuple(k for k in range(x.ndim) if k != 1)
        values = x.double() / (255 if dtype == torch.uint8 else 1)
        sums = (sums[0] + values.mean(around) * len(x), sums[1] + values.square().mean(around) * len(x))
        targets.append(y)
        count, steps = count + len(x), steps + 1
    if size is None:
        raise DataError(f"{part}: expected batches of images and targets from the DataLoader, got none")
    mean = sums[0] / count
    std = (sums[1] / count - mean.square()).clamp(min=0).sqrt()
    joined = torch.cat(targets)
    kind = as_targets(joined, "targets", part, task, size[1:])[1]
    return (
        LoaderImages(loader, kind, count, steps, size, dtype, packing),
        joined,
        (mean, torch.where(std > 1e-6, std, 1.0)),
    )


def _packing(loader: DataLoader[Any]) -> Packing | None:
    """From a first batch, where examples have several inputs."""
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(loader), None)
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not several(batch[0]):
        return None
    return Packing.of(batch[0], batched=True)


def _batches(
    loader: DataLoader[Any], task: str | None, seed: int, packing: Packing | None
) -> Iterator[tuple[Tensor, Tensor]]:
    iterator: Iterator[Any] | None = None
    while True:
        if iterator is None:  # samplers and workers draw their seeds when a pass begins
            owned = [getattr(owner, "generator", None) for owner in (loader, *samplers_of(loader))]
            before = [(own, own.get_state()) for own in owned if isinstance(own, torch.Generator)]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for generator, _ in before:
                    generator.manual_seed(seed)
                iterator = iter(loader)
                batch = next(iterator, None)
            for generator, state in before:
                generator.set_state(state)
        else:
            batch = next(iterator, None)
        if batch is None:
            return
        yield _pair(batch, task, packing)


def _pair(batch: Any, task: str | None, packing: Packing | None) -> tuple[Tensor, Tensor]:
    if packing is not None and isinstance(batch, tuple | list) and len(batch) == 2 and several(batch[0]):
        batch = packing.pack(batch[0], batched=True), batch[1]
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
        raise DataError(
            f"expected (images, targets) from the DataLoader, images a tensor [B, C, H, W], got {type(batch).__name__}: "
            "give it a collate_fn that makes such pairs"
        )
    x, y = batch
    if x.ndim < 3 or len(x) != len(y) or not (x.dtype == torch.uint8 or x.is_floating_point()):
        raise DataError(
            f"expected images [B, C, H, W] of uint8 or floats with as many targets, got {tuple(x.shape)} of {x.dtype} and "
            f"{len(y)}"
        )
    y = y if isinstance(y, Tensor) else torch.as_tensor(np.asarray(y))
    return (x if x.dtype == torch.uint8 else x.float()), as_targets(
        y, "targets", "DataLoader", task, tuple(x.shape[2:])
    )[0]
