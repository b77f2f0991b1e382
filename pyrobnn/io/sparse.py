"""State dicts on disk that use their zeros: small files, bit-equal tensors.

Each tensor is written in the shortest of four forms:

- `dense`: as it is;
- `bitmap`: one bit per element and the values that are not zero (best from about 1/8 density up);
- `gaps`: for each value the number of zeros before it, in one byte, and the values; a longer run of
  zeros is bridged by explicit zeros, as in Han et al. 2016 (best for scattered, sparse weights);
- `blocks`: the indices of the kernels or rows that hold anything, in the smallest integer type, and those
  blocks whole (best for structured zeros).

Every tensor comes back bit by bit, NaNs and -0.0 too. Multiplying by a 0/1 mask makes a -0.0 of
every masked negative weight; where there are many, their places are one bit per element beside the
rest (`torch.where(mask, w, 0)` avoids them). The file is an ordinary safetensors file; what each entry
means is in its metadata, with a CRC-32 per tensor.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyrobnn.errors import CheckpointError

_KEY = "pyrobnn.sparse"
_SEPARATOR = "::"
_DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)}  # fmt: skip
_INDEX = ((np.uint8, torch.uint8), (np.uint16, torch.uint16), (np.uint32, torch.uint32))

Parts = dict[str, Tensor]


def save_sparse(
    state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Write a state dict in compressed form, whole or not at all.

    Args:
        state: tensors by name, on any device, of any strides.
        path: target file; it is replaced only when the new one is complete.
        metadata: strings to keep beside the tensors.

    Returns:
        The form chosen for each tensor: `dense`, `bitmap`, `gaps` or `blocks`.

    Raises:
        CheckpointError: a dtype that safetensors cannot hold here, or a metadata key that is taken.
    """
    if metadata and _KEY in metadata:
        raise CheckpointError(f"the metadata key {_KEY!r} is used by the format: choose another name")
    entries: dict[str, dict[str, Any]] = {}
    tensors: Parts = {}
    for name, tensor in state.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise CheckpointError(f"tensor {name!r} has dtype {dtype}; expected one of {', '.join(_DTYPES)}")
        dense = tensor.detach().cpu().contiguous().clone()
        form, parts = _shortest(dense)
        entries[name] = {
            "form": form,
            "shape": list(dense.shape),
            "dtype": dtype,
            "signs": "signs" in parts,
            "crc": zlib.crc32(_bytes(dense).tobytes()),
        }
        tensors.update({_part_name(name, part): value for part, value in parts.items()})
    header = {**(metadata or {}), _KEY: json.dumps({"version": 1, "tensors": entries})}
    _write(tensors, header, Path(path))
    return {name: entry["form"] for name, entry in entries.items()}


def is_sparse(metadata: Mapping[str, str] | None) -> bool:
    """Whether a safetensors file with this metadata is in compressed form."""
    return metadata is not None and _KEY in metadata


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Read what :func:`save_sparse` wrote; every tensor is dense and bit-equal to the one saved.

    Raises:
        CheckpointError: no such file, another kind of file, or a damaged one.
    """
    return _read(path)[0]


def load_sparse_metadata(path: str | Path) -> dict[str, str]:
    """The strings that were saved beside the tensors.

    Raises:
        CheckpointError: as :func:`load_sparse`.
    """
    return _read(path, tensors=False)[1]


def _read(path: str | Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no file at {path}: check the path")
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if _KEY not in metadata:
                raise CheckpointError(
                    f"{path} is not a compressed state dict: expected {_KEY!r} in its metadata; "
                    "read it with safetensors.torch.load_file"
                )
            table = json.loads(metadata.pop(_KEY))
            if table["version"] != 1:
                raise CheckpointError(f"{path} has version {table['version']}, expected 1: update pyrobnn")
            if not tensors:
                return {}, metadata
            for name, entry in table["tensors"].items():
                form = entry["form"]
                parts = {part: file.get_tensor(_part_name(name, part)) for part in _PARTS[form]}
                tensor = _FORMS[form][1](parts, tuple(entry["shape"]), _DTYPES[entry["dtype"]])
                if entry["signs"]:
                    signs = file.get_tensor(_part_name(name, "signs"))
                    tensor.reshape(-1)[_unpack(signs, tensor.numel())] = -0.0
                if zlib.crc32(_bytes(tensor).tobytes()) != entry["crc"]:
                    raise CheckpointError(f"tensor {name!r} in {path} is damaged (checksum): copy the file again")
                found[name] = tensor
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged ({reason}): copy the file again") from error
    return found, metadata


def _write(tensors: Parts, header: Mapping[str, str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=dict(header))
        # mkstemp makes private files; give this one the mode that an ordinary new file has.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _part_name(name: str, part: str) -> str:
    return name if part == "dense" else f"{name}{_SEPARATOR}{part}"


def _bytes(tensor: Tensor) -> np.ndarray:
    """The tensor's bytes, `[numel, itemsize]`."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().reshape(flat.numel(), tensor.element_size())


def _unpack(bits: Tensor, count: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool))


def _shortest(tensor: Tensor) -> tuple[str, Parts]:
    best: tuple[str, Parts] = ("dense", {"dense": tensor})
    if tensor.numel() < 2:
        return best
    has_bits = np.asarray(_bytes(tensor).any(axis=1))
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
            parts = _FORMS[form][0](tensor, live)
            if parts is not None and _size({**parts, **signs}) < _size(best[1]):
                best = (form, {**parts, **signs})
    return best


def _size(parts: Parts) -> int:
    # An entry of the header (name, dtype, offsets) takes about 90 bytes.
    return sum(part.numel() * part.element_size() + 90 for part in parts.values())


def _to_bitmap(tensor: Tensor, live: np.ndarray) -> Parts:
    return {"bits": torch.from_numpy(np.packbits(live)), "values": tensor.reshape(-1)[torch.from_numpy(live)]}


def _from_bitmap(parts: Parts, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    flat = _zeros(shape, dtype)
    live = _unpack(parts["bits"], flat.numel()).numpy()
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
    values = torch.zeros(total, dtype=tensor.dtype)
    values[torch.from_numpy(at)] = tensor.reshape(-1)[torch.from_numpy(places)]
    return {"gaps": torch.from_numpy(gaps), "values": values}


def _from_gaps(parts: Parts, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    places = np.cumsum(parts["gaps"].numpy().astype(np.int64) + 1) - 1
    return _scatter(_zeros(shape, dtype), places, parts["values"]).reshape(shape)


def _block_size(shape: tuple[int, ...]) -> int:
    """A kernel for convolutions, a row for matrices."""
    return int(np.prod(shape[2:])) if len(shape) > 2 else shape[-1]


def _to_blocks(tensor: Tensor, live: np.ndarray) -> Parts | None:
    size = _block_size(tuple(tensor.shape))
    if tensor.dim() < 2 or size < 2:
        return None
    kept = np.flatnonzero(live.reshape(-1, size).any(axis=1))
    count = live.size // size
    kind = next((kind for kind, _ in _INDEX if count - 1 <= np.iinfo(kind).max), None)
    if kind is None:
        return None
    return {
        "blocks": torch.from_numpy(kept.astype(kind)),
        "values": tensor.reshape(count, size)[torch.from_numpy(kept)],
    }


def _from_blocks(parts: Parts, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    flat = _zeros(shape, dtype).reshape(-1, _block_size(shape))
    return _scatter(flat, parts["blocks"].numpy().astype(np.int64), parts["values"]).reshape(shape)


def _from_dense(parts: Parts, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tensor = parts["dense"]
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"expected {dtype} {shape}, found {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(int(np.prod(shape)), dtype=dtype)


def _scatter(flat: Tensor, places: np.ndarray, values: Tensor) -> Tensor:
    if len(places) != len(values) or (len(places) and places[-1] >= len(flat)):
        raise ValueError("indices and values do not fit the shape")
    flat[torch.from_numpy(places)] = values
    return flat


_FORMS: dict[str, tuple[Callable[..., Parts | None], Callable[..., Tensor]]] = {
    "dense": (lambda tensor, live: {"dense": tensor}, _from_dense),
    "bitmap": (_to_bitmap, _from_bitmap),
    "gaps": (_to_gaps, _from_gaps),
    "blocks": (_to_blocks, _from_blocks),
}
_PARTS = {
    "dense": ("dense",),
    "bitmap": ("bits", "values"),
    "gaps": ("gaps", "values"),
    "blocks": ("blocks", "values"),
}
