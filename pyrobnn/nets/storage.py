"""Compact networks on disk: in compressed form where there are zeros worth it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from pyrobnn.io.sparse import save_sparse
from pyrobnn.nets.weights import as_text, save_weights

WORTH = 0.9  # compressed files are written where they take at most this share of the plain one


def save_compact(net: nn.Module, path: str | Path, **metadata: Any) -> None:
    """Write a network's tensors with :func:`~pyrobnn.io.sparse.save_sparse` if that is clearly smaller.

    Else it is an ordinary safetensors file. :func:`~pyrobnn.nets.read_weights` reads both.

    Args:
        net: the network.
        path: target file.
        **metadata: as for :func:`~pyrobnn.nets.save_weights`.
    """
    target = Path(path)
    save_weights(net, target, **metadata)
    if all(bool(p.all()) for p in net.parameters()):
        return
    small = target.with_name(f".{target.name}.{os.getpid()}.small")
    try:
        save_sparse(net.state_dict(), small, {key: as_text(value) for key, value in metadata.items()})
        if small.stat().st_size <= WORTH * target.stat().st_size:
            os.replace(small, target)
    finally:
        small.unlink(missing_ok=True)


def stored_bytes(net: nn.Module, **metadata: Any) -> int:
    """Size of the file that :func:`save_compact` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save_compact(net, path, **metadata)
        return path.stat().st_size
