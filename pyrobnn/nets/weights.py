"""Reading and writing the weights of a network as safetensors."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from pyrobnn.errors import CheckpointError, NetError
from pyrobnn.io.checkpoint import check_archive
from pyrobnn.io.container import starts_right, to_bytes
from pyrobnn.io.files import first_line, read_bytes, write_bytes
from pyrobnn.io.sparse import parse_tensors, stated_shapes
from pyrobnn.nets.channel_map import ChannelMap

T = TypeVar("T")

TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")
_INSIDE = ("state_dict", "model_state_dict", "model", "net")  # where training scripts keep a state dict


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says about itself.

    Attributes:
        mean: Mean per channel the images were normalised with (pixels in 0-1), or None if not said.
        std: The standard deviation likewise.
        trained_on: Which images the weights have seen: ``"all"`` (also when the file does not say) or
            ``"train"``, the training part of the data whose fingerprint is the entry ``data`` (of the default split
            where there is none).
        metadata: All entries of the file, as strings.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trained_on: str = "all"
    metadata: dict[str, str] = field(default_factory=dict)


def load_weights(net: nn.Module, path: str | Path) -> WeightsInfo:
    """Copies the tensors of a weights file into `net`, all of them or none.

    Half-precision tensors are cast to the dtype of the net. Two kinds of keys may be missing:
    `ChannelMap` buffers, which are constants of the architecture, and BatchNorm's ``num_batches_tracked``.
    Prefixes that `DataParallel` (``module.``) and `torch.compile` (``_orig_mod.``) put before names are
    taken away where the net has no such names itself.

    Args:
        net: The network, on any device.
        path: A ``.safetensors`` file of its state dict; or what `torch.save` wrote (``.pt``, ``.pth``),
            the state dict itself or one under ``state_dict`` or ``model``, read without running code.

    Returns:
        What the metadata of the file says.

    Raises:
        CheckpointError: The file is missing or damaged.
        NetError: A key is missing or unexpected, a shape or kind of number differs, or a value is not
            finite. The net is unchanged.
    """
    own = net.state_dict()
    data = read_bytes(
        path,
        "expected a weights file, such as one written by pyrobnn.nets.save_weights",
        starts_right=None if is_torch_file(path) else _has_header,
    )
    metadata: dict[str, str] = {}
    if is_torch_file(path):
        tensors = _own_names(_torch_tensors(data, path), own)
    else:
        stated = _own_names(stated_shapes(data, path), own)
        _check_shapes(stated, own, _optional_keys(net), path)  # before anything of a size that it states is made
        found, metadata = parse_tensors(data, path)
        tensors = _own_names(found, own)
    _check_shapes({key: tuple(value.shape) for key, value in tensors.items()}, own, _optional_keys(net), path)
    check_values(tensors, own, path)
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
    return parse_tensors(read_bytes(path, "expected a .safetensors file"), path)


def _has_header(file: BinaryIO, size: int) -> bool:
    # A file that is no safetensors file at all is read, as far as it is short, for the reason to be named.
    return size < 2**26 or starts_right(file, size)


def is_torch_file(path: str | Path) -> bool:
    """Whether a file has the name of one that `torch.save` wrote."""
    return Path(path).suffix in TORCH_FILES


def check_values(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuses values that are not finite, or of another kind (whole, floating-point, boolean) than the net's.

    Raises:
        NetError: Names the file and the tensor.
    """
    for key, value in tensors.items():
        if _kind(value) != _kind(own[key]):
            raise NetError(
                f"{path} does not fit the net: {key!r} expected {_plain(own[key].dtype)}, got {_plain(value.dtype)}"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NetError(f"{path}: {key!r} holds NaN or infinity; use weights from a run that converged")


def _check_shapes(
    shapes: Mapping[str, tuple[int, ...]], own: Mapping[str, Tensor], optional: set[str], path: str | Path
) -> None:
    missing = [key for key in own if key not in shapes and key not in optional]
    unexpected = [key for key in shapes if key not in own]
    if missing or unexpected:
        kind, keys = ("lacks", missing) if missing else ("has an unexpected", unexpected)
        raise NetError(
            f"{path} does not fit the net: it {kind} {keys[0]!r} "
            f"({len(missing)} missing, {len(unexpected)} unexpected of {len(own)} keys); "
            + (_prefix_hint(shapes, own) or "build the net these weights were saved from")
        )
    for key, shape in shapes.items():
        if shape != tuple(own[key].shape):
            raise NetError(
                f"{path} does not fit the net: {key!r} expected shape {tuple(own[key].shape)}, "
                f"got {shape}; build the net with the sizes these weights were saved with"
            )


def _own_names(found: Mapping[str, T], own: Mapping[str, Any]) -> dict[str, T]:
    """The entries under the names of the net: without what wrappers put before them."""
    if found.keys() <= own.keys():
        return dict(found)
    renamed: dict[str, T] = {}
    for key, value in found.items():
        name = key
        while name not in own:
            shorter = name.removeprefix("module.").replace("_orig_mod.", "", 1)
            if shorter == name:
                break
            name = shorter
        renamed[name] = value
    if renamed.keys() != found.keys() and "n_averaged" not in own:
        renamed.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel, beside `module.`
    return renamed if len(renamed) >= len(found) - 1 else dict(found)


def _prefix_hint(found: Iterable[str], own: Mapping[str, Any]) -> str | None:
    """Advice where all names of one side are those of the other with a prefix."""
    found = list(found)
    for longer, shorter, what in ((found, own, "take it from the names"), (list(own), found, "add it to the names")):
        example, shortest = next(iter(longer), ""), set(shorter)
        starts = [example[: -len(name)] for name in shortest if name and example.endswith(f".{name}")]
        for prefix in starts:
            if all(name.startswith(prefix) and name.removeprefix(prefix) in shortest for name in longer):
                side = "its names begin" if longer is found else "the net's names begin"
                return f"{side} with the prefix {prefix!r} of a module around it: {what}"
    return None


def _torch_tensors(data: bytes, path: str | Path) -> dict[str, Tensor]:
    """The state dict in what `torch.save` wrote, read with `weights_only=True`."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        check_archive(data, path)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what it cannot read
        reason = "it holds more than tensors" if "weights_only" in str(error).lower() else first_line(error)
        raise CheckpointError(
            f"{path} cannot be read without running code ({reason}): write it again with "
            "torch.save(net.state_dict(), path), or pyrobnn.nets.save_weights(net, path)"
        ) from error
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{path} holds no state dict: expected torch.save(net.state_dict(), path)")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: expected a tensor under {key!r}, got {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{path}: {key!r} is no dense tensor: write the state dict of an ordinary network")
    return {key: value.detach() for key, value in content.items()}


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "floating"
    return "complex" if tensor.is_complex() else "boolean" if tensor.dtype == torch.bool else "whole"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
    write_bytes(path, to_bytes(tensors, as_metadata(metadata)))


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
        raise CheckpointError(f"{path}: metadata {key!r} expected numbers like 0.5,0.5,0.5, got {text!r}") from error


def as_metadata(entries: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file, as strings."""
    return {key: _as_text(value) for key, value in entries.items()}


def _as_text(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(str(part) for part in value)
    return str(value)
