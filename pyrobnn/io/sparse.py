"""State dicts on disk in forms that use their zeros: smaller files, bit-equal tensors.

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
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrobnn.errors import CheckpointError
from pyrobnn.io.container import from_bytes, read_header, to_bytes
from pyrobnn.io.files import first_line, read_bytes, write_bytes
from pyrobnn.io.sparse_forms import FORMS, MOST, PARTS, Parts, as_bytes, shortest, unpack

_KEY = "pyrobnn.sparse"
_SEPARATOR = "::"
_DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)}  # fmt: skip


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
    data, forms = compress_state(state, metadata)
    write_bytes(path, data)
    return forms


def compress_state(
    state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, str]]:
    """What :func:`save_sparse` writes, and the form chosen for each tensor.

    Raises:
        CheckpointError: as :func:`save_sparse`.
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
        form, parts = shortest(dense)
        entries[name] = {
            "form": form,
            "shape": list(dense.shape),
            "dtype": dtype,
            "signs": "signs" in parts,
            "crc": zlib.crc32(as_bytes(dense).tobytes()),
        }
        tensors.update({_part_name(name, part): value for part, value in parts.items()})
    header = {**(metadata or {}), _KEY: json.dumps({"version": 1, "tensors": entries})}
    return to_bytes(tensors, header), {name: entry["form"] for name, entry in entries.items()}


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Read what :func:`save_sparse` wrote; every tensor is dense and bit-equal to the one saved.

    Raises:
        CheckpointError: no such file, another kind of file, or a damaged one.
    """
    return _read(path, values=True)[0]


def load_sparse_metadata(path: str | Path) -> dict[str, str]:
    """The strings that were saved beside the tensors.

    Raises:
        CheckpointError: as :func:`load_sparse`.
    """
    return _read(path, values=False)[1]


def _read(path: str | Path, *, values: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    data = read_bytes(path)
    _, metadata = read_header(data, path)
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path} is not a compressed state dict: expected {_KEY!r} in its metadata; "
            "read it with safetensors.torch.load_file"
        )
    if not values:
        return {}, {key: value for key, value in metadata.items() if key != _KEY}
    return parse_tensors(data, path)


def stated_shapes(data: bytes, path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape by name of what a safetensors file holds, plain or compressed, before any of it is made.

    Raises:
        CheckpointError: not such a file.
    """
    shapes, metadata = read_header(data, path)
    if _KEY not in metadata:
        return shapes
    return {name: entry["shape"] for name, entry in _table(metadata[_KEY], path).items()}


def parse_tensors(data: bytes, path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (dense, on the CPU) and metadata of a safetensors file's bytes, plain or compressed.

    Memory is at most 1,024 times the size of the file, which no compressed form exceeds.

    Args:
        data: the content.
        path: where it came from, for messages.

    Raises:
        CheckpointError: another kind of file, or a damaged one.
    """
    shapes, metadata = read_header(data, path)
    found = from_bytes(data, path)
    if _KEY not in metadata:
        return {name: found[name] for name in shapes}, metadata
    table = _table(metadata.pop(_KEY), path)
    dense = sum(math.prod(entry["shape"]) * entry["dtype"].itemsize for entry in table.values())
    if dense > MOST * len(data):
        raise CheckpointError(
            f"{path} is damaged ({dense:,} bytes of tensors in a file of {len(data):,}): copy the file again"
        )
    return {name: _decode(found, name, entry, path) for name, entry in table.items()}, metadata


def _table(text: str, path: str | Path) -> dict[str, dict[str, Any]]:
    """The table of a compressed file: by name, form, shape, dtype and checksum, all of the right kind."""
    try:
        table = json.loads(text)
        if table["version"] != 1:
            raise CheckpointError(f"{path} has version {table['version']!r}, expected 1: update pyrobnn")
        entries = {}
        for name, entry in table["tensors"].items():
            shape = tuple(entry["shape"])
            if entry["form"] not in FORMS or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"the form or shape of {name!r}")
            entries[name] = {**entry, "shape": shape, "dtype": _DTYPES[entry["dtype"]]}
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error
    return entries


def _decode(found: Mapping[str, Tensor], name: str, entry: Mapping[str, Any], path: str | Path) -> Tensor:
    form = entry["form"]
    try:
        parts = {part: found[_part_name(name, part)] for part in PARTS[form]}
        values = parts.get("values")
        if values is not None and values.dtype != entry["dtype"]:
            raise ValueError(f"expected values of {entry['dtype']}, found {values.dtype}")
        tensor = FORMS[form][1](parts, entry["shape"], entry["dtype"])
        if entry["signs"]:
            signs = found[_part_name(name, "signs")]
            tensor.reshape(-1)[unpack(signs, tensor.numel())] = -0.0
        damaged = zlib.crc32(as_bytes(tensor).tobytes()) != entry["crc"]
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise _damaged(path, error) from error
    if damaged:
        raise CheckpointError(f"tensor {name!r} in {path} is damaged (checksum): copy the file again")
    return tensor


def _damaged(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({first_line(error)}): copy the file again")


def _part_name(name: str, part: str) -> str:
    return name if part == "dense" else f"{name}{_SEPARATOR}{part}"
