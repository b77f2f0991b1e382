"""`load_data`: reads every kind of source."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyrobnn.data.arrays import Data
from pyrobnn.data.augment import Augment
from pyrobnn.data.datasets import read_torch
from pyrobnn.data.folder import read_folder
from pyrobnn.data.inputs import several
from pyrobnn.data.loader import LoaderImages, read_loader
from pyrobnn.data.named import AUGMENTATION, NAMES, read_named
from pyrobnn.data.notes import Notes
from pyrobnn.data.npz import read_npz
from pyrobnn.data.raw import Part, Raw, check
from pyrobnn.data.split import Split
from pyrobnn.data.statistics import channel_statistics, fingerprint, stratified_split
from pyrobnn.data.stream import StreamedImages
from pyrobnn.data.tensors import is_array, resize_all
from pyrobnn.errors import DataError

Source: TypeAlias = str | os.PathLike[str] | Dataset[Any] | DataLoader[Any] | tuple[Any, ...] | Data
TASKS = ("classification", "regression", "multilabel", "segmentation")
#: Training images from which mean and standard deviation are taken where images are streamed.
SAMPLE = 2_000


def load_data(
    source: Source,
    *,
    valid_fraction: float = 0.1,
    test_fraction: float | None = None,
    split_seed: int = 0,
    augment: Augment | str | None = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    task: str | None = None,
    signals: bool = False,
    stream: bool | None = None,
    workers: int | None = None,
) -> Data:
    """Reads a data set and sets a validation part aside.

    Images are kept in memory where they take at most a quarter of what is free (`MEMORY_SHARE`), else they are read
    when they are needed. A `UserWarning` says what was left out, reduced or guessed.

    Args:
        source: A name (``digits``, ``mnist``, ``fashion_mnist``, ``kmnist``, ``usps``, ``cifar10``,
            ``cifar100``, ``svhn``, ``stl10``); an ``.npz`` file with ``x_train, y_train, x_test, y_test``; an
            image folder; a torch `Dataset`; a `DataLoader` (its data set; random transforms are drawn once);
            ``(images, labels)``, two arrays; or ``(train, test)`` or ``(train, valid, test)`` of those. A `Data` comes
            back as it is.
        valid_fraction: Share of the training images set aside, the same from each class; 0 for none. A source that has
            a validation part of its own (a folder ``val`` beside ``test``, ``x_valid`` in an ``.npz``) keeps that.
        test_fraction: Share set aside as test set if the source has none (default: a third of digits, a fifth
            of others).
        split_seed: Decides both splits. It is not the seed of training, so runs with other seeds keep the
            same validation images.
        augment: What ``train.batches(augment=True)`` does: an `Augment`, or words for one (``"shift=4,flip"``, see
            :meth:`Augment.parse`). ``"auto"`` is the usual one for named sets and nothing for others.
        mean: Mean per channel to normalise with (default: of the training part, pixels in 0-1; of up to 2,000 training
            images where they are streamed).
        std: Standard deviation per channel, likewise.
        image_size: Side in pixels that images are resized to: the shorter side becomes that, then the middle is cut
            out square.
        task: What the targets are: ``"classification"`` (one class per image), ``"segmentation"`` (one per pixel, -1 or
            255 for none), ``"multilabel"`` (``[N, K]`` of 0 and 1) or ``"regression"`` (``[N]`` or ``[N, D]``). None finds
            out from their type and shape.
        signals: Arrays ``[N, C, L]`` are signals of C channels, not grey pictures.
        stream: Whether images are read when they are needed, by the workers of a torch `DataLoader`; None decides by the
            memory there is. With True a `DataLoader` is used as it is: its batches, order, workers and transforms.
        workers: Processes that read streamed images (default: one less than there are processors, at most 8). No figure
            depends on it.

    Returns:
        The data set, with the splits ``.train``, ``.valid`` and ``.test``.

    Raises:
        DataError: The source cannot be found, read or used; the message says what to do.

    >>> data = load_data("digits")
    >>> len(data.train), len(data.valid), len(data.test), data.image_shape
    (1078, 120, 599, (1, 8, 8))
    """
    if isinstance(source, Data):
        return source
    if not 0 <= valid_fraction < 1:
        raise DataError(f"expected a valid_fraction from 0 to below 1, got {valid_fraction}")
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise DataError(f"expected a test_fraction between 0 and 1, got {test_fraction}")
    if image_size is not None and not 1 <= image_size <= 8192:
        raise DataError(f"expected an image_size from 1 to 8192 pixels, got {image_size}")
    if task is not None and task not in TASKS:
        raise DataError(f"expected a task of {', '.join(TASKS)}, got {task!r}")
    if workers is not None and not 0 <= workers <= 256:
        raise DataError(f"expected 0 to 256 workers, got {workers}")
    known = isinstance(source, str) and source in NAMES
    notes = Notes()
    loaders = _loaders(source) if stream else None
    if loaders is not None:
        name = type(next(iter(loaders.values())).dataset).__name__
        data = _as_it_is(loaders, name, task, image_size, notes)
    else:
        name, raw = _read(source, image_size, task, signals, stream, notes)
        share = test_fraction if test_fraction is not None else (1 / 3 if known else 0.2)
        data = _in_parts(name, raw, valid_fraction, share, split_seed, workers)
    notes.warn(name)
    augmentation = augment
    if isinstance(augment, str):
        usual = AUGMENTATION[name] if known else None
        augmentation = usual if augment == "auto" else Augment.parse(augment)
    assert augmentation is None or isinstance(augmentation, Augment)
    if augmentation is not None and len(data.image_shape) != 3:
        raise DataError(f"augmentation is for images [C, H, W], got {list(data.image_shape)}: leave it out")
    data = replace(data, train=replace(data.train, augment=augmentation), augmentation=augmentation)
    if mean is None and std is None:
        return data
    return data.with_normalisation(data.mean if mean is None else mean, data.std if std is None else std)


def _in_parts(name: str, raw: Raw, valid_fraction: float, test_fraction: float, seed: int, workers: int | None) -> Data:
    """The source as a data set, what it lacks cut from its training part."""
    count = check(raw, name)
    train, test, valid = raw.train, raw.test, raw.valid
    if test is None:
        rest, aside = _split(train, raw.task, test_fraction, seed)
        _not_empty(aside, name, "test")
        train, test = _rows(train, rest), _rows(train, aside)
    if valid is None:
        rest, aside = _split(train, raw.task, valid_fraction, seed)
        if valid_fraction > 0:
            _not_empty(aside, name, "validation")
        train, valid = _rows(train, rest), _rows(train, aside)
    sample = train.images
    if isinstance(sample, StreamedImages):
        few = min(SAMPLE, len(sample))
        sample = sample.select(torch.arange(few) * len(sample) // few)[:]
    constants = channel_statistics(sample) if raw.packing is None else ((0.0,), (1.0,))  # each input as it is
    first, second, third = (
        Split(_with_workers(p.images, workers), p.targets, *constants) for p in (train, valid, test)
    )
    known = fingerprint(first, second, third)
    return Data(
        name,
        first,
        second,
        third,
        count,
        *constants,
        None,
        known,
        classes=raw.classes,
        task=raw.task,
        resized=raw.resized,
        packing=raw.packing,
    )


def _split(part: Part, task: str, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that stay and rows set aside; the same share of each class where images have one."""
    labels = part.targets if task == "classification" else torch.zeros(len(part.targets), dtype=torch.int64)
    return stratified_split(labels, share, seed)


def _rows(part: Part, rows: Tensor) -> Part:
    images = part.images.select(rows) if isinstance(part.images, StreamedImages) else part.images[rows]
    return Part(images, part.targets[rows])


def _with_workers(images: Tensor | StreamedImages, workers: int | None) -> Tensor | StreamedImages:
    return images if isinstance(images, Tensor) else replace(images, workers=workers)


def _not_empty(aside: Tensor, name: str, part: str) -> None:
    if len(aside) == 0:
        raise DataError(
            f"{name}: expected at least 2 images of a class to set a {part} part aside, got 1 of each; add images"
        )


def _loaders(source: Any) -> dict[str, DataLoader[Any]] | None:
    """Loaders that are to be used as they are; data sets without a length are put into one."""
    parts = source if isinstance(source, tuple | list) else (source,)
    if not parts or not any(isinstance(part, DataLoader | IterableDataset) for part in parts):
        return None
    if not all(isinstance(part, DataLoader | IterableDataset) for part in parts) or len(parts) not in (2, 3):
        raise DataError(
            "a DataLoader that is used as it is (stream=True) cannot be split: give (train, test) or (train, valid, test) "
            "of loaders, or its data set"
        )
    names = ("train", "test") if len(parts) == 2 else ("train", "valid", "test")
    return {
        name: part if isinstance(part, DataLoader) else DataLoader(part, batch_size=128)
        for name, part in zip(names, parts, strict=True)
    }


def _as_it_is(
    loaders: dict[str, DataLoader[Any]], name: str, task: str | None, image_size: int | None, notes: Notes
) -> Data:
    if image_size is not None:
        raise DataError("a DataLoader that is used as it is (stream=True) resizes images itself: leave out image_size")
    if "valid" not in loaders:
        notes.add(
            "no validation part can be cut from a DataLoader that is used as it is: give (train, valid, test) for one"
        )
    parts: dict[str, Part] = {}
    found: dict[str, LoaderImages] = {}
    statistics = None
    for part, loader in loaders.items():
        found[part], targets, constants = read_loader(loader, part, task)
        task, statistics = found[part].task, statistics or constants
        parts[part] = Part(found[part], targets)  # type: ignore[arg-type]
    assert statistics is not None
    if found["train"].dtype == torch.uint8:
        mean, std = tuple(statistics[0].tolist()), tuple(statistics[1].tolist())
    else:  # floats are normalised by the user's own transforms
        mean, std = (0.0,) * found["train"].size[0], (1.0,) * found["train"].size[0]
    count = check(Raw(parts["train"], parts.get("valid"), parts["test"], task=task or "classification"), name)
    train, test = (Split(found[part], parts[part].targets, mean, std) for part in ("train", "test"))
    if "valid" in found:
        valid = Split(found["valid"], parts["valid"].targets, mean, std)
    else:
        valid = Split(torch.empty((0, *found["train"].size), dtype=found["train"].dtype), train.labels[:0], mean, std)
    return Data(
        name,
        train,
        valid,
        test,
        count,
        mean,
        std,
        None,
        fingerprint(train, valid, test),
        task=task or "classification",
        packing=found["train"].packing,
    )


def _read(
    source: Any, image_size: int | None, task: str | None, signals: bool, stream: bool | None, notes: Notes
) -> tuple[str, Raw]:
    if isinstance(source, str | os.PathLike):
        return _read_path(os.fspath(source), image_size, task, stream, notes)
    settings: dict[str, Any] = {"stream": stream, "signals": signals, "notes": notes}
    if (
        isinstance(source, tuple | list)
        and len(source) == 2
        and (is_array(source[0]) or (several(source[0]) and is_array(source[1])))
    ):
        return "images", read_torch({"train": tuple(source)}, task, image_size, **settings)
    if isinstance(source, tuple | list) and len(source) in (2, 3):
        names = ("train", "test") if len(source) == 2 else ("train", "valid", "test")
        return f"{', '.join(names[:-1])} and test set", read_torch(
            dict(zip(names, source, strict=True)), task, image_size, **settings
        )
    if isinstance(source, Dataset | DataLoader):
        inner = source.dataset if isinstance(source, DataLoader) else source
        return type(inner).__name__, read_torch({"train": source}, task, image_size, **settings)
    raise DataError(
        f"expected a data set name, an .npz file, an image folder, a torch Dataset or DataLoader, (images, labels), or "
        f"(train, test) or (train, valid, test) of those, got {type(source).__name__}"
    )


def _read_path(
    source: str, image_size: int | None, task: str | None, stream: bool | None, notes: Notes
) -> tuple[str, Raw]:
    path = Path(source).expanduser()
    if source not in NAMES and path.is_dir():
        if task not in (None, "classification"):
            raise DataError(f"{source}: an image folder has a class per image, got task={task!r}: give a Dataset")
        return path.name or str(path), read_folder(path, image_size, stream=stream, notes=notes)
    if source in NAMES:
        name, raw = source, read_named(source)
    elif path.is_file() or path.suffix == ".npz":
        name, raw = path.stem, read_npz(path, task)
    else:
        raise _unknown(source, path)
    if stream:
        raise DataError(f"{name} is one array and read whole: stream=True is for image folders, data sets and loaders")
    return name, raw if image_size is None else resize_all(raw, image_size)


def _unknown(source: str, path: Path) -> DataError:
    if path.exists():
        return DataError(f"data {source!r} is neither a file nor a folder: expected an .npz file or an image folder")
    if len(path.parts) > 1 or path.suffix:
        return DataError(f"data {source!r} not found: expected an .npz file or an image folder")
    near = difflib.get_close_matches(source.lower().replace("-", "_"), NAMES, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(NAMES)}"
    return DataError(f"unknown data set {source!r}: {hint} (or an .npz file, or an image folder)")
