"""Compact networks on disk, compressed where enough weights are zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pyrobnn.io.container import to_bytes
from pyrobnn.io.files import write_bytes
from pyrobnn.io.sparse import compress_state
from pyrobnn.nets.weights import as_metadata

WORTH = 0.9  # the compressed form is written where it takes at most this share of the plain one


def save_compact(net: nn.Module, path: str | Path, **metadata: Any) -> None:
    """Write a network's tensors with :func:`~pyrobnn.io.sparse.save_sparse` if that is clearly smaller.

    Else it is an ordinary safetensors file. :func:`~pyrobnn.nets.read_weights` reads both.

    Args:
        net: the network.
        path: target file.
        **metadata: as for :func:`~pyrobnn.nets.save_weights`.
    """
    write_bytes(path, _content(net, metadata))


def stored_bytes(net: nn.Module, **metadata: Any) -> int:
    """Size of the file that :func:`save_compact` writes."""
    return len(_content(net, metadata))


def _content(net: nn.Module, metadata: dict[str, Any]) -> bytes:
    about = as_metadata(metadata)
    plain = to_bytes(net.state_dict(), about)
    if all(bool(p.all()) for p in net.parameters()):
        return plain
    small, _ = compress_state(net.state_dict(), about)
    return small if len(small) <= WORTH * len(plain) else plain
