"""Data where the compute is: whole sets that live on the device, and copies that run ahead of it.

What a split serves to a CPU goes through the same code; there its tensors are already where they are wanted.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pyrobnn.data.memory import free_memory

#: Share of the free memory of a device that one set of images may take; larger sets are copied batch by batch.
DEVICE_SHARE = 0.25
_resident: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def resident(tensor: Tensor, device: torch.device) -> Tensor | None:
    """A tensor as it lives on a device, copied there once and freed with the original; None where it does not fit.

    Args:
        tensor: a whole set of images or targets; it must not be changed afterwards.
        device: where it is wanted.
    """
    if tensor.device == device or (tensor.device.type == device.type and device.index is None):
        return tensor
    copies: dict[torch.device, Tensor] = _resident.setdefault(tensor, {})
    if device not in copies:
        if tensor.numel() * tensor.element_size() > DEVICE_SHARE * free_on(device):
            return None
        copies[device] = tensor.to(device)
    return copies[device]


def rows_of(tensor: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Some rows of a tensor on the device: picked there where all of it lives there, else picked and copied."""
    held = resident(tensor, device)
    return tensor[rows].to(device) if held is None else held[rows.to(device)]


def ahead(batches: Iterable[tuple[Tensor, ...]], device: torch.device, depth: int | None = None) -> Iterator[Any]:
    """Batches of host tensors as tensors of the device, the next ones on their way while one is worked on.

    On CUDA they are copied from pinned memory on a stream of their own.

    Args:
        batches: tuples of tensors.
        device: where they go.
        depth: how many are on their way; default: one on CUDA, none elsewhere, so that nothing is read that is not asked for.
    """
    cuda = device.type == "cuda"
    side = torch.cuda.Stream(device) if cuda else None
    source = iter(batches)

    def start() -> Iterator[tuple[Tensor, ...]]:
        for batch in source:
            with torch.cuda.stream(side) if side is not None else nullcontext():
                yield tuple((t.pin_memory() if cuda else t).to(device, non_blocking=cuda) for t in batch)

    on_their_way, started = deque[tuple[Tensor, ...]](), start()
    on_their_way.extend(itertools.islice(started, int(cuda) if depth is None else depth))
    while True:
        on_their_way.extend(itertools.islice(started, 1))
        if not on_their_way:
            return
        batch = on_their_way.popleft()
        if side is not None:
            now = torch.cuda.current_stream(device)
            now.wait_stream(side)
            for part in batch:
                part.record_stream(now)
        yield batch


def free_on(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()  # the CPU's own, which others share
