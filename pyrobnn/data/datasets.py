"""Torch data sets, loaders and arrays as sources: read into memory, or on demand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from pyrobnn.data.dataset_stream import read_streamed, too_large
from pyrobnn.data.inputs import PackedDataset, Packing, several
from pyrobnn.data.items import (
    class_names,
    dataset_of,
    image_of,
    is_pair,
    items_of,
    pair_of,
    reason,
    rows_of,
    stacked,
    target_of,
)
from pyrobnn.data.memory import room_for_images
from pyrobnn.data.notes import Notes
from pyrobnn.data.pictures import DEFAULT_SIZE, bits_to_drop, eight_bits, resized, with_channels
from pyrobnn.data.raw import Part, Raw, as_pixels, joined_bits
from pyrobnn.data.targets import as_targets
from pyrobnn.data.tensors import resized_tensor, tensor_pixels
from pyrobnn.errors import DataError

LARGER = "give it as an image folder, with stream=True, or as fewer and smaller images"


def read_torch(
    sources: dict[str, Any],
    task: str | None,
    image_size: int | None,
    *,
    stream: bool | None,
    signals: bool = False,
    notes: Notes,
) -> Raw:
    """Reads data sets by the name of their part (train, valid, test).

    Args:
        sources: Each a `Dataset`, a `DataLoader` (its data set) or a pair ``(images, targets)`` of arrays.
        task: What the targets are, see `Raw.task`; None to find out.
        image_size: The shorter side of pictures is resized to it and the middle is cut out square.
        stream: Whether images are read when they are needed; None decides by the memory there is.
        signals: Whether items ``[C, L]`` are signals and not grey pictures.
        notes: Gets a remark for all that is left out, reduced or guessed.

    Raises:
        DataError: Anything that cannot be used.
    """
    packing = _packing(next(iter(sources.values())))
    if packing is not None:
        if image_size is not None:
            raise DataError("image_size is for single images: resize several inputs yourself")
        sources = {part: _packed(source, packing) for part, source in sources.items()}
        raw = read_torch(sources, task, None, stream=stream, signals=True, notes=notes)
        return replace(raw, packing=packing)
    if stream is None:
        stream = any(too_large(source) for source in sources.values())
    if all(is_pair(source) for source in sources.values()):
        if stream:
            raise DataError("arrays are in memory already: leave out stream=True, or give a Dataset")
        return _from_arrays(sources, task, image_size, signals, notes)
    names = class_names(sources)
    if stream:
        found, words = read_streamed(sources, image_size, signals, notes)
        return _raw(found, task, words, names)
    gathered = {part: _gather(source, part, signals, notes) for part, source in sources.items()}
    arrays, words = _alike(gathered, image_size, notes)
    return _raw({part: (arrays[part], gathered[part].targets) for part in sources}, task, words, names)


def _packing(source: Any) -> Packing | None:
    """How several inputs lie in a vector, where examples have several."""
    if is_pair(source):
        return Packing.of(source[0], batched=True) if several(source[0]) else None
    dataset = dataset_of(source)
    if not isinstance(dataset, Dataset) or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    try:
        item = dataset[0]
    except Exception:  # reading says what is wrong with it
        return None
    pair = isinstance(item, tuple | list) and len(item) == 2
    return Packing.of(item[0]) if pair and several(item[0]) else None


def _packed(source: Any, packing: Packing) -> Any:
    if is_pair(source):
        return packing.pack(source[0], batched=True), source[1]
    if isinstance(source, DataLoader):
        rows = list(rows_of(source, Notes(), ""))
        return Subset(PackedDataset(source.dataset, packing), rows)
    return PackedDataset(source, packing)


def _raw(found: dict[str, tuple[Any, Any]], task: str | None, words: str, names: Any) -> Raw:
    parts: dict[str, Part] = {}
    for part, (images, targets) in found.items():
        where = "labels" if len(found) == 1 else f"{part} labels"
        ready, task = as_targets(targets, "labels", where, task, tuple(images.shape[2:]))
        parts[part] = Part(images, ready)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = ()
    return Raw(parts["train"], parts.get("valid"), parts.get("test"), tuple(names), task or "classification", words)


def _from_arrays(sources: dict[str, Any], task: str | None, image_size: int | None, signals: bool, notes: Notes) -> Raw:
    arrays = {}
    for part, (images, _) in sources.items():
        if signals and not isinstance(images, Tensor):
            images = torch.from_numpy(np.asarray(images))
        if isinstance(images, Tensor):
            arrays[part] = tensor_pixels(images, part, notes, signals)
        else:
            arrays[part] = as_pixels(images, "images", part, notes, floats=True)
    ready = joined_bits(arrays, notes)
    words = ""
    if image_size is not None:
        ready = {part: resized_tensor(images, image_size) for part, images in ready.items()}
        words = f"resized to {image_size}x{image_size}"
    return _raw({part: (ready[part], sources[part][1]) for part in sources}, task, words, None)


@dataclass
class _Gathered:
    images: list[np.ndarray]
    targets: np.ndarray
    pictures: bool


def _gather(source: Any, part: str, signals: bool, notes: Notes) -> _Gathered:
    """All items of a part, in memory."""
    if is_pair(source):
        images, targets = source
        found = (
            tensor_pixels(images, part, notes, signals)
            if isinstance(images, Tensor)
            else as_pixels(images, "images", part, notes, floats=True)
        )
        return _Gathered(list(found), np.asarray(targets), False)
    if not isinstance(source, Dataset | DataLoader):
        raise DataError(f"{part}: expected a Dataset, a DataLoader or (images, labels), got {type(source).__name__}")
    where, room = type(dataset_of(source)).__name__, room_for_images()
    arrays: list[np.ndarray] = []
    labels: list[Any] = []
    pictures = None
    iterator = iter(items_of(source, part, notes))
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            break
        except DataError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise DataError(
                f"{where}: reading item {len(arrays)} raised {type(error).__name__}: {reason(error)}"
            ) from error
        image, target = pair_of(item, len(arrays), where)
        array, picture = image_of(image, where, notes, signals)
        pictures = picture if pictures is None else pictures and picture
        arrays.append(array)
        labels.append(target_of(target, where))
        room -= array.nbytes
        if room < 0 and not hasattr(dataset_of(source), "__len__"):
            raise DataError(f"{where}: {len(arrays):,} images fill the memory set aside for them: {LARGER}")
    if not arrays:
        raise DataError(f"{where}: expected images, got an empty data set")
    return _Gathered(arrays, stacked(labels, where), bool(pictures))


def _alike(gathered: dict[str, _Gathered], image_size: int | None, notes: Notes) -> tuple[dict[str, Tensor], str]:
    """Images of all parts in one type, number of channels and size."""
    every = [array for part in gathered.values() for array in part.images]
    deep = [int(array.max()) for array in every if array.dtype == np.uint16 and array.size]
    drop = bits_to_drop(max(deep), notes) if deep else 0
    pictures = all(part.pictures for part in gathered.values())
    channels = max(len(array) for array in every) if pictures else 0
    sizes = {array.shape[1:] for array in every}
    words = ""
    if image_size is None and pictures and len(sizes) > 1:
        image_size = DEFAULT_SIZE
        notes.add(f"pictures of {len(sizes)} sizes are resized to {image_size}x{image_size}: choose with image_size")
    if image_size is not None and sizes != {(image_size, image_size)}:
        words = f"resized to {image_size}x{image_size}"
    return {name: _stack(part, drop, channels, image_size, name) for name, part in gathered.items()}, words


def _stack(part: _Gathered, drop: int, channels: int, size: int | None, name: str) -> Tensor:
    out: Tensor | None = None
    for number, array in enumerate(part.images):
        array = with_channels(eight_bits(array, drop), channels)
        if size is not None:
            array = (
                resized(array, size)
                if part.pictures
                else resized_tensor(torch.from_numpy(array[None]), size)[0].numpy()
            )
        image = torch.from_numpy(np.ascontiguousarray(array))
        if out is None:
            out = torch.empty((len(part.images), *image.shape), dtype=image.dtype)
        if image.shape != out.shape[1:] or image.dtype != out.dtype:
            raise DataError(
                f"{name}: expected images of one size and type, {tuple(out.shape[1:])} {out.dtype}, "
                f"got {tuple(image.shape)} {image.dtype} at number {number}; resize them"
            )
        out[number] = image
        part.images[number] = array[:0]  # the memory goes to the tensor
    assert out is not None
    return out
