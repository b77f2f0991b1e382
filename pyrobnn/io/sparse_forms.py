"""The four storage forms of :mod:`pyrobnn.io.sparse`: the shortest for a tensor, encoding and decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INDEX = (np.uint8, np.uint16, np.uint32)
# Their bits are stored as these: safetensors has known torch's wider unsigned integers for a short time only.
_STORED: dict[Any, Any] = {np.uint16: np.int16, np.uint32: np.int32}
# No form says more than this many bytes of a tensor in one byte of the file, so a file of a few
# kilobytes cannot ask for all memory. Only blocks of an almost empty tensor could.
MOST = 1024

Parts = dict[str, Tensor]


def as_bytes(tensor: Tensor) -> np.ndarray:
    """The tensor's bytes, `[numel, itemsize]`."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().reshape(flat.numel(), tensor.element_size())


def unpack(bits: Tensor, count: int) -> Tensor:
    """`count` booleans from packed bits."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool))


def shortest(tensor: Tensor) -> tuple[str, Parts]:
    """The name of the form that takes the fewest bytes, and its parts."""
    best: tuple[str, Parts] = ("dense", {"dense": tensor})
    if tensor.numel() < 2:
        return best
    has_bits = np.asarray(as_bytes(tensor).any(axis=1))
    choices: list[tuple[np.ndarray, Parts]] = [(has_bits, {})]
    if tensor.is_floating_point():
        # fp8 has few operators; every value of it is a float16 too.
        wide = tensor.half() if tensor.element_size() == 1 else tensor
        live = (wide != 0).reshape(-1).numpy()
        if not np.array_equal(live, has_bits):
            choices.append((live, {"signs": torch.from_numpy(np.packbits(has_bits & ~live))}))
    for live, signs in choices:
        if live.all():
            continue
        for form in ("bitmap", "gaps", "blocks"):
            parts = FORMS[form][0](tensor, live)
            if parts is not None and _size({**parts, **signs}) < _size(best[1]) and _fits(tensor, parts):
                best = (form, {**parts, **signs})
    return best


def _size(parts: Parts) -> int:
    # An entry of the header (name, dtype, offsets) takes about 90 bytes.
    return sum(part.numel() * part.element_size() + 90 for part in parts.values())


def _fits(tensor: Tensor, parts: Parts) -> bool:
    stored = sum(part.numel() * part.element_size() for part in parts.values())
    return tensor.numel() * tensor.element_size() <= MOST * (stored + 90)


def _to_bitmap(tensor: Tensor, live: np.ndarray) -> Parts:
    return {"bits": torch.from_numpy(np.packbits(live)), "values": _take(tensor.reshape(-1), live)}


def _from_bitmap(parts: Parts, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    flat = _zeros(shape, dtype)
    live = unpack(parts["bits"], flat.numel()).numpy()
    return _scatter(flat, np.flatnonzero(live), parts["values"]).reshape(shape)


def _to_gaps(tensor: Tensor, live: np.ndarray) -> Parts:
    """One byte per value: zeros since the last one, at most 255; longer runs carry explicit zeros."""
    places = np.flatnonzero(live)
    zeros = np.diff(places, prepend=-1) - 1
    bridges = zeros // 256
    total = len(places) + int(bridges.sum())
    at = np.cumsum(bridges + 1) - 1  # where each real value lands among the stored ones
    gaps = np.full(total, 255, dtype=np.uint8)
    gaps[at] = zeros % 256
    values = _scatter(torch.zeros(total, dtype=tensor.dtype), at, _take(tensor.reshape(-1), places))
    return {"gaps": torch.from_numpy(gaps), "values": values}


def _from_gaps(parts: Parts, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    places = np.cumsum(parts["gaps"].numpy().astype(np.int64) + 1) - 1
    return _scatter(_zeros(shape, dtype), places, parts["values"]).reshape(shape)


def _block_size(shape: tuple[int, ...]) -> int:
    """A kernel for convolutions, a row for matrices."""
    return math.prod(shape[2:]) if len(shape) > 2 else shape[-1]


def _to_blocks(tensor: Tensor, live: np.ndarray) -> Parts | None:
    size = _block_size(tuple(tensor.shape))
    if tensor.dim() < 2 or size < 2:
        return None
    kept = np.flatnonzero(live.reshape(-1, size).any(axis=1))
    count = live.size // size
    kind = next((kind for kind in _INDEX if count - 1 <= np.iinfo(kind).max), None)
    if kind is None:
        return None
    return {
        "blocks": torch.from_numpy(kept.astype(kind).view(_STORED.get(kind, kind))),
        "values": _take(tensor.reshape(count, size), kept),
    }


def _from_blocks(parts: Parts, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    flat = _zeros(shape, dtype).reshape(-1, _block_size(shape))
    return _scatter(flat, _places(parts["blocks"].numpy()), parts["values"]).reshape(shape)


def _places(stored: np.ndarray) -> np.ndarray:
    unsigned = {np.dtype(signed): kind for kind, signed in _STORED.items()}.get(stored.dtype)
    return (stored if unsigned is None else stored.view(unsigned)).astype(np.int64)


def _from_dense(parts: Parts, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tensor = parts["dense"]
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"expected {dtype} {shape}, found {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(math.prod(shape), dtype=dtype)


def _bits(tensor: Tensor) -> Tensor:
    """A view that can be indexed: torch 2.6 cannot index fp8."""
    return tensor.view(torch.uint8) if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _take(flat: Tensor, places: np.ndarray) -> Tensor:
    return _bits(flat)[torch.from_numpy(places)].view(flat.dtype)


def _scatter(flat: Tensor, places: np.ndarray, values: Tensor) -> Tensor:
    if len(places) != len(values) or (len(places) and not 0 <= places.min() <= places.max() < len(flat)):
        raise ValueError("indices and values do not fit the shape")
    _bits(flat)[torch.from_numpy(places)] = _bits(values)
    return flat


FORMS: dict[str, tuple[Callable[..., Parts | None], Callable[..., Tensor]]] = {
    "dense": (lambda tensor, live: {"dense": tensor}, _from_dense),
    "bitmap": (_to_bitmap, _from_bitmap),
    "gaps": (_to_gaps, _from_gaps),
    "blocks": (_to_blocks, _from_blocks),
}
PARTS = {
    "dense": ("dense",),
    "bitmap": ("bits", "values"),
    "gaps": ("gaps", "values"),
    "blocks": ("blocks", "values"),
}
