"""Safetensors in memory: bytes from tensors, tensors from bytes, and the header alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pyrobnn.errors import CheckpointError
from pyrobnn.io.files import first_line


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file.

    Args:
        tensors: by name, on any device and of any strides; tied ones are written once each.
        metadata: strings to keep beside them.
    """
    # Clones, because safetensors refuses tensors that share memory.
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    data = safetensors.torch.save(own, dict(metadata) if metadata is not None else None)
    if not metadata:
        return data
    # The library writes metadata in any order; here equal content is equal bytes.
    size = int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8 : 8 + size]), "__metadata__": dict(metadata)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def read_header(data: bytes, path: str | Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by name, and the metadata, of a safetensors file's bytes.

    Raises:
        CheckpointError: not such a file.
    """
    size = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or size > len(data) - 8:
            raise ValueError("it is shorter than its header says")
        header: dict[str, Any] = json.loads(data[8 : 8 + size].decode("utf-8"))
        metadata = header.pop("__metadata__", None) or {}
        shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in header.items()}
        return shapes, {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(path, error) from error


def starts_right(file: BinaryIO, size: int) -> bool:
    """Whether an open file is as long as a safetensors header at its start says."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        return False
    try:
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return size == 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return False


def from_bytes(data: bytes, path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file's bytes, on the CPU.

    Raises:
        CheckpointError: not such a file.
    """
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> CheckpointError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
    return CheckpointError(
        f"{path} is damaged, or not a readable safetensors file ({reason}); copy it again, or convert a torch.save file "
        "with safetensors.torch.save_file(state_dict, path)"
    )
