"""Image folders: one sub-folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as TF

from pyrobnn.data.raw import Raw
from pyrobnn.errors import DataError

#: Side of the images, in pixels, if they differ in size and the caller names none.
DEFAULT_SIZE = 64


def read_folder(root: Path, image_size: int | None = None) -> Raw:
    """Reads ``root/train/<class>/*`` with ``root/test/<class>/*``, or ``root/<class>/*``.

    Without ``test`` a folder ``val`` is the test set (the ImageNet layout). Without ``train`` there is one
    set, and the caller splits it. Images that are all grey stay one channel; all others become RGB.

    Args:
        root: The folder.
        image_size: The shorter side is resized to it and the middle is cut out square. None keeps the size
            that all images share, or takes `DEFAULT_SIZE` if they differ.

    Raises:
        DataError: No classes, no images, a damaged image, or classes that differ between the two parts.
    """
    if not (root / "train").is_dir():
        only = _open(root)
        images, labels = _read([only], image_size)[0]
        return Raw(images, labels)
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if test_root is None:
        raise DataError(
            f"{root} has train but no test folder: add {root / 'test'}, or leave out the level train"
        )
    train, test = _open(root / "train"), _open(test_root)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"{root}: expected equal class folders in train and {test_root.name}, got {odd[0]!r} in one only"
        )
    (x_train, y_train), (x_test, y_test) = _read([train, test], image_size)
    return Raw(x_train, y_train, x_test, y_test)


def _open(root: Path) -> ImageFolder:
    try:
        return ImageFolder(str(root))
    except FileNotFoundError as error:
        raise DataError(
            f"{root}: expected one sub-folder with images per class, got {str(error).splitlines()[0]}"
        ) from error


def _read(folders: list[ImageFolder], image_size: int | None) -> list[tuple[Tensor, Tensor]]:
    sizes: set[tuple[int, int]] = set()
    modes: set[str] = set()
    for folder in folders:
        for path, _ in folder.samples:
            with _open_image(path) as image:
                sizes.add(image.size)
                modes.add(image.mode)
    mode = "L" if all(mode in ("L", "1", "LA") or mode.startswith("I") for mode in modes) else "RGB"
    if image_size is None and len(sizes) > 1:
        image_size = DEFAULT_SIZE
    return [_read_part(folder, mode, image_size) for folder in folders]


def _read_part(folder: ImageFolder, mode: str, image_size: int | None) -> tuple[Tensor, Tensor]:
    arrays, labels = [], []
    for path, label in folder.samples:
        try:
            with _open_image(path) as image:
                converted = _eight_bit(image, path).convert(mode)
        except OSError as error:  # the header was fine, the pixels are not
            raise DataError(f"{path} is a damaged image ({error}): remove it") from error
        if image_size is not None:
            converted = TF.center_crop(TF.resize(converted, [image_size]), [image_size])
        pixels = np.array(converted, dtype=np.uint8)
        arrays.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        labels.append(label)
    return torch.from_numpy(np.stack(arrays)), torch.tensor(labels, dtype=torch.int64)


def _eight_bit(image: Image.Image, path: str) -> Image.Image:
    """Grey images of 16 bits by their upper byte: `convert` would clip them to white."""
    if image.mode == "F":
        raise DataError(f"{path} has pixels of 32-bit floats: expected 8 or 16 bits; convert it, or give an .npz file")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise DataError(f"{path} has pixels beyond 16 bits: expected 8 or 16; convert it, or give an .npz file")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def _open_image(path: str) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is not a readable image: remove it") from error
