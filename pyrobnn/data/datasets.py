"""Torch data sets, loaders and arrays: the items of users, read into memory or when they are needed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler, Subset, default_collate

from pyrobnn.data.inputs import PackedDataset, Packing, several
from pyrobnn.data.memory import room_for_images
from pyrobnn.data.notes import Notes
from pyrobnn.data.pictures import (
    DEFAULT_SIZE,
    bits_to_drop,
    channels_first,
    eight_bits,
    pixels,
    resized,
    with_channels,
)
from pyrobnn.data.raw import (
    COMMON_CHANNELS,
    Part,
    Raw,
    as_float32,
    as_pixels,
    as_targets,
    is_channels_first,
    joined_bits,
)
from pyrobnn.data.stream import StreamedImages
from pyrobnn.errors import DataError

#: Items that are looked at to find out what a data set holds, before it is streamed.
PROBES = 64
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
        stream = any(_too_large(source, notes) for source in sources.values())
    if all(_is_pair(source) for source in sources.values()):
        if stream:
            raise DataError("arrays are in memory already: leave out stream=True, or give a Dataset")
        return _from_arrays(sources, task, image_size, signals, notes)
    if stream:
        return _streamed(sources, task, image_size, signals, notes)
    gathered = {part: _gather(source, part, signals, notes) for part, source in sources.items()}
    arrays, words = _alike(gathered, image_size, notes)
    names = next((getattr(_dataset(source), "classes", None) for source in sources.values()), None)
    return _raw({part: (arrays[part], gathered[part].targets) for part in sources}, task, words, names)


def _packing(source: Any) -> Packing | None:
    """How several inputs lie in a vector, where examples have several."""
    if _is_pair(source):
        return Packing.of(source[0], batched=True) if several(source[0]) else None
    dataset = _dataset(source)
    if not isinstance(dataset, Dataset) or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    try:
        item = dataset[0]
    except Exception:  # reading says what is wrong with it
        return None
    pair = isinstance(item, tuple | list) and len(item) == 2
    return Packing.of(item[0]) if pair and several(item[0]) else None


def _packed(source: Any, packing: Packing) -> Any:
    if _is_pair(source):
        return packing.pack(source[0], batched=True), source[1]
    if isinstance(source, DataLoader):
        rows = list(_rows(source, Notes(), ""))
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


# Arrays


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple | list) and len(source) == 2


def is_array(value: Any) -> bool:
    """Whether this is a whole array of images or targets."""
    return isinstance(value, Tensor | np.ndarray)


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
        ready = {part: _resized_tensor(images, image_size) for part, images in ready.items()}
        words = f"resized to {image_size}x{image_size}"
    return _raw({part: (ready[part], sources[part][1]) for part in sources}, task, words, None)


def tensor_pixels(images: Tensor, where: str, notes: Notes, signals: bool = False) -> np.ndarray:
    """A tensor of images ``[N, C, ...]`` (or grey ones ``[N, H, W]``) as uint8, uint16 or float32."""
    if images.layout != torch.strided or images.is_meta:
        raise DataError(f"{where}: expected an ordinary tensor of images, got a sparse one or one without values: use .to_dense()")
    if images.ndim == 3 and not signals:
        images = images[:, None]
    if images.ndim < 3:
        raise DataError(f"{where}: expected an image tensor [N, C, H, W], got shape {tuple(images.shape)}")
    return _values(_checked_layout(images, images.shape[1:], where, notes).detach().cpu(), where)


def _checked_layout(images: Tensor, shape: torch.Size, where: str, notes: Notes) -> Tensor:
    """Tensors are channels first by convention; the other way round is worth a word."""
    if len(shape) == 3 and shape[0] not in COMMON_CHANNELS and shape[2] in COMMON_CHANNELS and shape[0] == shape[1]:
        notes.add(f"tensors are read as [C, H, W] = {list(shape)}: use .movedim(-1, -3) if the channels come last", where)
    return images


def _values(images: Tensor, where: str) -> np.ndarray:
    if images.dtype == torch.bool:
        return images.numpy().astype(np.uint8) * 255
    if images.dtype in (torch.uint8, torch.uint16):
        return images.numpy()
    if images.is_floating_point():
        return as_float32(images.double().numpy() if images.dtype == torch.bfloat16 else images.numpy(), where)
    raise DataError(
        f"{where}: expected uint8 or float images, got {images.dtype}; use .to(torch.uint8) if all values are 0-255, else "
        ".to(torch.uint16)"
    )


def resize_all(raw: Raw, size: int) -> Raw:
    """Images that are in memory, brought to one square size."""
    changed = {
        name: None if part is None else Part(_resized_tensor(part.images, size), part.targets)
        for name, part in (("train", raw.train), ("valid", raw.valid), ("test", raw.test))
    }
    assert changed["train"] is not None
    return Raw(changed["train"], changed["valid"], changed["test"], raw.classes, raw.task, f"resized to {size}x{size}")


def _resized_tensor(images: Any, size: int) -> Tensor:
    from torchvision.transforms.v2 import functional as TF

    if images.ndim != 4:
        raise DataError(f"image_size is for images [N, C, H, W], got shape {tuple(images.shape)}: leave it out")
    if tuple(images.shape[2:]) == (size, size):
        return images
    return torch.cat([TF.center_crop(TF.resize(part, [size], antialias=True), [size, size]) for part in images.split(512)])


# Single items


def _dataset(source: Any) -> Any:
    return source.dataset if isinstance(source, DataLoader) else source


def _items(source: Any, part: str, notes: Notes) -> Iterable[Any]:
    """The items of a data set; of a loader those that its sampler visits, each once and in the order of the data set."""
    dataset = _dataset(source)
    if isinstance(source, DataLoader) and hasattr(dataset, "__len__"):
        if source.collate_fn not in (default_collate, None) and source.batch_size is not None:
            notes.add("the collate_fn of a DataLoader is not used: stream=True takes the loader as it is", part)
        rows = _rows(source, notes, part)
        return (dataset[row] for row in rows)
    if hasattr(dataset, "__len__"):
        return (dataset[row] for row in range(len(dataset)))
    return iter(dataset)  # an IterableDataset


def _rows(loader: DataLoader[Any], notes: Notes, part: str) -> Iterable[int]:
    sampler = loader.sampler
    whole = range(len(loader.dataset))  # type: ignore[arg-type]
    plain = isinstance(sampler, SequentialSampler) or (isinstance(sampler, RandomSampler) and not sampler.replacement)
    if plain or sampler is None:
        return whole
    with torch.random.fork_rng(devices=[]):
        visited = [int(row) for row in sampler]
    rows = sorted(set(visited))
    if len(rows) < len(visited):
        notes.add("a sampler that repeats images is not used: stream=True takes the DataLoader as it is", part)
    if len(rows) < len(whole):
        notes.add(f"{len(whole) - len(rows):,} images that the sampler of the DataLoader leaves out are left out", part)
    return rows


def _pair(item: Any, number: int, where: str) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"{where}: expected (image, label) from the data set, got {type(item).__name__} at number {number}")
    return item[0], item[1]


def _one(image: Any, where: str, notes: Notes, signals: bool = False) -> tuple[np.ndarray, bool]:
    """One image ``[C, H, W]`` of uint8, uint16 or float32, and whether it is a picture (of any size and colour)."""
    if signals and isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
    if isinstance(image, Tensor):
        if image.ndim == 2 and not signals:
            image = image[None]
        if image.ndim < 2:
            raise DataError(f"{where}: expected images [C, H, W], got shape {tuple(image.shape)}")
        return _values(_checked_layout(image, image.shape, where, notes).detach().cpu(), where), False
    if hasattr(image, "convert") and hasattr(image, "mode"):
        try:
            return pixels(image, where, notes), True
        except DataError:
            raise
        except Exception as error:  # Pillow reads the file only now
            raise DataError(f"{where}: an image is damaged ({_reason(error)})") from error
    array = np.asarray(image)
    if array.ndim not in (2, 3):
        raise DataError(f"{where}: expected images [C, H, W], got shape {array.shape}")
    if array.ndim == 3 and is_channels_first(array.shape, f"{where}: a picture of shape {array.shape}", notes):
        return _values(torch.from_numpy(np.ascontiguousarray(array)), where), False
    return channels_first(_values(torch.from_numpy(np.ascontiguousarray(array)), where)), False


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@dataclass
class _Gathered:
    images: list[np.ndarray]
    targets: np.ndarray
    pictures: bool


def _gather(source: Any, part: str, signals: bool, notes: Notes) -> _Gathered:
    """All items of a part, in memory."""
    if _is_pair(source):
        images, targets = source
        found = tensor_pixels(images, part, notes, signals) if isinstance(images, Tensor) else as_pixels(images, "images", part, notes, floats=True)
        return _Gathered(list(found), np.asarray(targets), False)
    if not isinstance(source, Dataset | DataLoader):
        raise DataError(f"{part}: expected a Dataset, a DataLoader or (images, labels), got {type(source).__name__}")
    where, room = type(_dataset(source)).__name__, room_for_images()
    arrays: list[np.ndarray] = []
    labels: list[Any] = []
    pictures = None
    iterator = iter(_items(source, part, notes))
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            break
        except DataError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise DataError(f"{where}: reading item {len(arrays)} raised {type(error).__name__}: {_reason(error)}") from error
        image, target = _pair(item, len(arrays), where)
        array, picture = _one(image, where, notes, signals)
        pictures = picture if pictures is None else pictures and picture
        arrays.append(array)
        labels.append(_one_target(target, where))
        room -= array.nbytes
        if room < 0 and not hasattr(_dataset(source), "__len__"):
            raise DataError(f"{where}: {len(arrays):,} images fill the memory set aside for them: {LARGER}")
    if not arrays:
        raise DataError(f"{where}: expected images, got an empty data set")
    return _Gathered(arrays, _stacked(labels, where), bool(pictures))


def _one_target(target: Any, where: str) -> Any:
    if isinstance(target, Tensor):
        return target.detach().cpu().numpy()
    if hasattr(target, "convert") and hasattr(target, "mode"):  # a mask as a picture: palette indices are the classes
        return np.asarray(target)
    try:
        return np.asarray(target)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected a class number as label, got {target!r:.60}") from error


def _stacked(targets: list[Any], where: str) -> np.ndarray:
    odd = next((t for t in targets if t.dtype.kind not in "iufb" or t.shape != targets[0].shape), None)
    if odd is not None:
        raise DataError(f"{where}: expected a class number as label, got {odd.tolist()!r:.60} (of shape {odd.shape})")
    return np.stack(targets)


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
            array = resized(array, size) if part.pictures else _resized_tensor(torch.from_numpy(array[None]), size)[0].numpy()
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


# Streams


def _too_large(source: Any, notes: Notes) -> bool:
    dataset = _dataset(source)
    if _is_pair(source) or not isinstance(dataset, Dataset) or not hasattr(dataset, "__len__") or not len(dataset):
        return False
    try:
        array = _one(_pair(dataset[0], 0, type(dataset).__name__)[0], "", Notes())[0]
    except Exception:  # reading says what is wrong with it
        return False
    return array.nbytes * len(dataset) > room_for_images()


@dataclass(frozen=True)
class DatasetReader:
    """Reads single items of a map-style data set.

    Attributes:
        dataset: The data set.
        pictures: Whether it gives pictures, which are made alike; else its images must be alike.
        shape: ``(C, H, W)`` of every image.
        drop: Bits that pixels of 16 bits lose.
        signals: Whether items ``[C, L]`` are signals.
    """

    dataset: Any
    pictures: bool
    shape: tuple[int, ...]
    drop: int
    signals: bool = False
    random: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, row: int, seed: int) -> tuple[Any, Any]:
        """An item, with what its transforms draw taken from the seed."""
        where = type(self.dataset).__name__
        try:
            with _seeded(seed):
                return _pair(self.dataset[row], row, where)
        except DataError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise DataError(f"{where}: reading item {row} raised {type(error).__name__}: {_reason(error)}") from error

    def whole(self, row: int, seed: int = 0) -> Tensor:
        """An image in its own size, ``[C, h, w]``."""
        array = eight_bits(_one(self.item(row, seed)[0], type(self.dataset).__name__, Notes(), self.signals)[0], self.drop)
        return torch.from_numpy(np.ascontiguousarray(with_channels(array, self.shape[0]) if self.pictures else array))

    def fit(self, image: Tensor, row: int) -> Tensor:
        """An image in the size of the set, ``[C, H, W]``."""
        if self.pictures and tuple(image.shape) != self.shape and self.shape[1] == self.shape[2]:
            image = torch.from_numpy(resized(image.numpy(), self.shape[1]))
        if tuple(image.shape) != self.shape:
            raise DataError(
                f"{type(self.dataset).__name__}: expected images {list(self.shape)} as the others, got {list(image.shape)} "
                f"at number {row}; resize them"
            )
        return image

    def state(self) -> list[str]:
        """Its name and length: the labels tell more."""
        return [f"{type(self.dataset).__name__} {len(self.dataset)}"]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global random states of torch, numpy and Python set for a moment."""
    kept, kept_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what users' transforms draw from
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_numpy)  # noqa: NPY002


def _streamed(sources: dict[str, Any], task: str | None, image_size: int | None, signals: bool, notes: Notes) -> Raw:
    datasets: dict[str, Any] = {}
    for part, source in sources.items():
        dataset = _dataset(source)
        if not isinstance(dataset, Dataset) or not hasattr(dataset, "__len__"):
            raise DataError(f"{part}: expected a data set with a length to stream, got {type(source).__name__}: put it into a DataLoader")
        if not len(dataset):
            raise DataError(f"{type(dataset).__name__}: expected images, got an empty data set")
        if isinstance(source, DataLoader) and (rows := _rows(source, notes, part)) != range(len(dataset)):
            dataset = Subset(dataset, list(rows))
        datasets[part] = dataset
    probes, pictures = [], True
    for dataset in datasets.values():
        reader = DatasetReader(dataset, False, (), 0, signals)
        for k in range(min(PROBES, len(dataset))):
            array, picture = _one(reader.item(k * len(dataset) // min(PROBES, len(dataset)), 0)[0], type(dataset).__name__, notes, signals)
            probes.append(array)
            pictures &= picture
    deep = [int(array.max()) for array in probes if array.dtype == np.uint16]
    drop = bits_to_drop(max(deep), notes) if deep else 0
    sizes = {array.shape[1:] for array in probes}
    if image_size is not None and not pictures:
        raise DataError("image_size is for pictures, and this data set gives arrays: resize them in its transform")
    if image_size is None and pictures and len(sizes) > 1:
        image_size = DEFAULT_SIZE
        notes.add(f"pictures of {len(sizes)} sizes are resized to {image_size}x{image_size}: choose with image_size")
    size = next(iter(sizes)) if image_size is None else (image_size, image_size)
    shape = (max(len(array) for array in probes), *size)
    dtype = torch.float32 if probes[0].dtype == np.float32 else torch.uint8
    found = {}
    for part, dataset in datasets.items():
        reader = DatasetReader(dataset, pictures, shape, drop, signals)
        found[part] = (StreamedImages(reader, shape, None, dtype), _all_targets(reader))
    words = "" if image_size is None or sizes == {(image_size, image_size)} else f"resized to {image_size}x{image_size}"
    return _raw(found, task, words, getattr(next(iter(datasets.values())), "classes", None))


class _Targets(Dataset[Any]):
    def __init__(self, reader: DatasetReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, row: int) -> Any:
        try:
            return _one_target(self.reader.item(row, 0)[1], type(self.reader.dataset).__name__)
        except DataError as error:
            return error


def _all_targets(reader: DatasetReader) -> np.ndarray:
    """The targets of a data set: its attribute `targets` where that says what the items say, else by reading it once."""
    from pyrobnn.data.stream import default_workers

    where, count = type(reader.dataset).__name__, len(reader)
    listed = getattr(reader.dataset, "targets", None)
    if isinstance(listed, Tensor):
        listed = listed.numpy()
    if isinstance(listed, list | np.ndarray) and len(listed) == count and getattr(reader.dataset, "target_transform", None) is None:
        found = np.asarray(listed)
        probes = {k * count // min(PROBES, count) for k in range(min(PROBES, count))}
        if found.ndim == 1 and all(found[row] == _one_target(reader.item(row, 0)[1], where) for row in probes):
            return found
    loader = DataLoader(
        _Targets(reader), batch_size=None, num_workers=default_workers() if count > 1000 else 0, generator=torch.Generator()
    )
    targets = []
    for target in loader:
        if isinstance(target, DataError):
            raise target
        targets.append(_one_target(target, where))
        if targets[0].nbytes * count > room_for_images():
            raise DataError(f"{where}: its targets do not fit in memory: put it into a DataLoader and give that with stream=True")
    return _stacked(targets, where)
