"""Reading and writing the weights of a network as safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyrobnn.errors import CheckpointError, NetError
from pyrobnn.nets.channel_map import ChannelMap


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says about itself.

    Attributes:
        mean: Mean per channel the images were normalised with (pixels in 0-1), or None if not said.
        std: The standard deviation likewise.
        trained_on: Which images the weights have seen: ``"all"`` (also when the file does not say) or
            ``"train"``, the training part of the default split.
        metadata: All entries of the file, as strings.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trained_on: str = "all"
    metadata: dict[str, str] = field(default_factory=dict)


def load_weights(net: nn.Module, path: str | Path) -> WeightsInfo:
    """Copies the tensors of a safetensors file into `net`, all of them or none.

    Half-precision tensors are cast to the dtype of the net. Two kinds of keys may be missing:
    `ChannelMap` buffers, which are constants of the architecture, and BatchNorm's ``num_batches_tracked``.

    Args:
        net: The network, on any device.
        path: A ``.safetensors`` file of its state dict.

    Returns:
        What the metadata of the file says.

    Raises:
        CheckpointError: The file is missing or damaged.
        NetError: A key is missing or unexpected, a shape differs, or a value is not finite. The net is
            unchanged.
    """
    tensors, metadata = read_weights(path)
    own = net.state_dict()
    optional = _optional_keys(net)
    missing = [key for key in own if key not in tensors and key not in optional]
    unexpected = [key for key in tensors if key not in own]
    if missing or unexpected:
        kind, keys = ("lacks", missing) if missing else ("has an unexpected", unexpected)
        raise NetError(
            f"{path} does not fit the net: it {kind} {keys[0]!r} "
            f"({len(missing)} missing, {len(unexpected)} unexpected of {len(own)} keys); "
            "build the net these weights were saved from"
        )
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise NetError(
                f"{path} does not fit the net: {key!r} expected shape {tuple(own[key].shape)}, "
                f"got {tuple(value.shape)}; build the net with the sizes these weights were saved with"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NetError(f"{path}: {key!r} holds NaN or infinity; use weights from a run that converged")
    with torch.no_grad():
        for key, value in tensors.items():
            own[key].copy_(value)
    return WeightsInfo(
        mean=_floats(metadata, "mean", path),
        std=_floats(metadata, "std", path),
        trained_on=metadata.get("trained_on", "all"),
        metadata=metadata,
    )


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads tensors (on the CPU) and metadata of a safetensors file, plain or compressed.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    from pyrobnn.io.sparse import is_sparse, load_sparse, load_sparse_metadata

    if not Path(path).is_file():
        raise CheckpointError(f"weights file {path} not found: expected a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            if is_sparse(file.metadata()):
                return load_sparse(path), load_sparse_metadata(path)
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); copy it again, or convert a "
            "torch.save file with safetensors.torch.save_file(state_dict, path)"
        ) from error


def save_weights(net: nn.Module, path: str | Path, **metadata: Any) -> None:
    """Writes the state dict of `net`; a reader never sees half a file.

    Args:
        net: The network, on any device and in any memory layout.
        path: Where to; folders are created.
        **metadata: Entries of the file, written as strings; sequences become ``a,b,c``. `load_weights`
            understands ``mean``, ``std`` and ``trained_on``.
    """
    save_tensors(net.state_dict(), path, **metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, **metadata: Any) -> None:
    """Writes named tensors as :func:`save_weights` writes those of a network."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Clones, because safetensors refuses tensors that share memory (tied weights).
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, partial, metadata={key: as_text(value) for key, value in metadata.items()})
        partial.chmod(0o644)  # safetensors writes for the owner alone, unlike the other files of a run
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _optional_keys(net: nn.Module) -> set[str]:
    keys: set[str] = set()
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, ChannelMap):
            keys |= {f"{prefix}index", f"{prefix}weight"}
        keys.add(f"{prefix}num_batches_tracked")
    return keys


def _floats(metadata: dict[str, str], key: str, path: str | Path) -> tuple[float, ...] | None:
    text = metadata.get(key)
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: metadata {key!r} expected numbers like 0.5,0.5,0.5, got {text!r}"
        ) from error


def as_text(value: Any) -> str:
    """A metadata entry: sequences become `a,b,c`."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(str(part) for part in value)
    return str(value)
