"""`load_data`: one door for every kind of source."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrobnn.data.arrays import Data, Split, channel_statistics, fingerprint, stratified_split
from pyrobnn.data.augment import Augment
from pyrobnn.data.folder import read_folder
from pyrobnn.data.named import AUGMENTATION, NAMES, read_named
from pyrobnn.data.npz import read_npz
from pyrobnn.data.raw import Raw, as_images, as_labels, check
from pyrobnn.errors import DataError

Source: TypeAlias = str | os.PathLike[str] | Dataset[Any] | DataLoader[Any] | tuple[Any, Any] | Data


def load_data(
    source: Source,
    *,
    valid_fraction: float = 0.1,
    test_fraction: float | None = None,
    split_seed: int = 0,
    augment: Augment | Literal["auto"] | None = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
) -> Data:
    """Reads a data set into memory and sets a validation part aside.

    Args:
        source: A name (``digits``, ``mnist``, ``fashion_mnist``, ``kmnist``, ``usps``, ``cifar10``,
            ``cifar100``, ``svhn``, ``stl10``); an ``.npz`` file with ``x_train, y_train, x_test, y_test``; an
            image folder; a torch `Dataset` or `DataLoader` (its data set; random transforms are drawn once);
            a pair ``(train, test)`` of those or of ``(images, labels)``. A `Data` comes back as it is.
        valid_fraction: Share of the training images set aside, the same from each class; 0 for none.
        test_fraction: Share set aside as test set if the source has none (default: a third of digits, a fifth
            of others).
        split_seed: Decides both splits. It is not the seed of training, so runs with other seeds keep the
            same validation images.
        augment: What ``train.batches(augment=True)`` does. ``"auto"`` is the usual one for named sets and
            nothing for others.
        mean: Mean per channel to normalise with (default: of the training part, pixels in 0-1).
        std: Standard deviation per channel, likewise.
        image_size: Side in pixels that the images of a folder are resized to.

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
    known = isinstance(source, str) and source in NAMES
    name, raw = _read(source, image_size)
    count = check(raw, name)
    x_train, y_train, x_test, y_test = raw.x_train, raw.y_train, raw.x_test, raw.y_test
    if x_test is None or y_test is None:
        share = test_fraction if test_fraction is not None else (1 / 3 if known else 0.2)
        rest, aside = stratified_split(y_train, share, split_seed)
        _not_empty(aside, name, "test")
        x_train, y_train, x_test, y_test = x_train[rest], y_train[rest], x_train[aside], y_train[aside]
    rest, aside = stratified_split(y_train, valid_fraction, split_seed)
    if valid_fraction > 0:
        _not_empty(aside, name, "validation")
    augmentation = augment if not isinstance(augment, str) else AUGMENTATION[name] if known else None
    constants = channel_statistics(x_train[rest])
    train = Split(x_train[rest], y_train[rest], *constants, augmentation)
    valid = Split(x_train[aside], y_train[aside], *constants)
    test = Split(x_test, y_test, *constants)
    data = Data(name, train, valid, test, count, *constants, augmentation, fingerprint(train, valid, test))
    if mean is None and std is None:
        return data
    return data.with_normalisation(data.mean if mean is None else mean, data.std if std is None else std)


def _not_empty(aside: Tensor, name: str, part: str) -> None:
    if len(aside) == 0:
        raise DataError(
            f"{name}: expected at least 2 images of a class to set a {part} part aside, got 1 of each; "
            "add images"
        )


def _read(source: Any, image_size: int | None) -> tuple[str, Raw]:
    if isinstance(source, str | os.PathLike):
        return _read_path(os.fspath(source), image_size)
    if isinstance(source, tuple | list) and len(source) == 2:
        x_train, y_train = _materialise(source[0], "train")
        return "train and test set", Raw(x_train, y_train, *_materialise(source[1], "test"))
    if isinstance(source, Dataset | DataLoader):
        inner = source.dataset if isinstance(source, DataLoader) else source
        return type(inner).__name__, Raw(*_materialise(inner, type(inner).__name__))
    raise DataError(
        f"expected a data set name, an .npz file, an image folder, a torch Dataset or DataLoader, or a pair "
        f"(train, test), got {type(source).__name__}"
    )


def _read_path(source: str, image_size: int | None) -> tuple[str, Raw]:
    if source in NAMES:
        return source, read_named(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return path.name or str(path), read_folder(path, image_size)
    if path.is_file() or path.suffix == ".npz":
        return path.stem, read_npz(path)
    if len(path.parts) > 1 or path.suffix:
        raise DataError(f"data {source!r} not found: expected an .npz file or an image folder")
    near = difflib.get_close_matches(source.lower().replace("-", "_"), NAMES, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(NAMES)}"
    raise DataError(f"unknown data set {source!r}: {hint} (or an .npz file, or an image folder)")


def _materialise(source: Any, where: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a Dataset, a DataLoader, or an ``(images, labels)`` pair."""
    if isinstance(source, DataLoader):
        source = source.dataset
    if isinstance(source, tuple | list) and len(source) == 2:
        images, labels = source
        return _image_tensor(images, where), as_labels(labels, "labels", where)
    if not isinstance(source, Dataset):
        raise DataError(
            f"{where}: expected a Dataset, a DataLoader or (images, labels), got {type(source).__name__}"
        )
    images, labels = [], []
    for item in _items(source):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{where}: expected (image, label) from the data set, got {type(item).__name__}")
        images.append(_one_image(item[0], where))
        labels.append(_one_label(item[1], where))
        if images[-1].shape != images[0].shape or images[-1].dtype != images[0].dtype:
            raise DataError(
                f"{where}: expected images of one size and type, {tuple(images[0].shape)} {images[0].dtype}, "
                f"got {tuple(images[-1].shape)} {images[-1].dtype} at number {len(images) - 1}; resize them"
            )
    if not images:
        raise DataError(f"{where}: expected images, got an empty data set")
    return torch.stack(images), as_labels(np.array(labels), "labels", where)


def _one_label(label: Any, where: str) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: expected a class number as label, got {label!r:.60}") from error
    if number != label:
        raise DataError(f"{where}: expected a class number as label, got {label!r:.60}")
    return number


def _items(dataset: Dataset[Any]) -> Iterable[Any]:
    if hasattr(dataset, "__len__"):
        return (dataset[index] for index in range(len(dataset)))
    return iter(dataset)  # an IterableDataset


def _image_tensor(images: Any, where: str) -> Tensor:
    """A batch: numpy arrays in the Keras layouts, or tensors ``[N, H, W]`` or ``[N, C, H, W]``."""
    if not isinstance(images, Tensor):
        return as_images(images, "images", where)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4:
        raise DataError(f"{where}: expected an image tensor [N, C, H, W], got shape {tuple(images.shape)}")
    return _pixels(images.detach().cpu(), where)


def _one_image(image: Any, where: str) -> Tensor:
    """One image ``[C, H, W]`` from a tensor, a PIL image or a numpy array."""
    if not isinstance(image, Tensor):
        array = np.array(image)
        if array.ndim == 3:
            array = array.transpose(2, 0, 1)
        if array.dtype == np.bool_:
            array = array.astype(np.uint8) * 255
        image = torch.from_numpy(array)
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3:
        raise DataError(f"{where}: expected images [C, H, W], got shape {tuple(image.shape)}")
    return _pixels(image.detach().cpu(), where)


def _pixels(images: Tensor, where: str) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{where}: expected uint8 or float images, got {images.dtype}; use .to(torch.uint8)")
    if not bool(torch.isfinite(images).all()):
        raise DataError(f"{where}: expected finite pixels, got NaN or infinity")
    return images.to(torch.float32)
