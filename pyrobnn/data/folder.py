"""Image folders: one sub-folder per class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pyrobnn.data.listing import list_pictures, parts_of
from pyrobnn.data.memory import room_for_images
from pyrobnn.data.notes import Notes
from pyrobnn.data.pictures import (
    DEFAULT_SIZE,
    bits_to_drop,
    eight_bits,
    file_pixels,
    is_deep_colour,
    is_grey,
    open_picture,
    resized,
    upright_size,
    with_channels,
)
from pyrobnn.data.raw import Part, Raw
from pyrobnn.data.stream import StreamedImages
from pyrobnn.errors import DataError

#: Pictures whose headers are read to find out what a folder holds; of more than that, as many evenly spaced.
SCAN = 20_000


def read_folder(root: Path, image_size: int | None = None, *, stream: bool | None = None, notes: Notes) -> Raw:
    """Reads ``root/train/<class>/*`` with ``root/test/<class>/*``, or ``root/<class>/*``.

    A folder ``val`` (or ``valid``, ``validation``) beside them is the validation part; without ``test`` it is the
    test set (the ImageNet layout). Without ``train`` there is one set, and the caller splits it. Images that are
    all grey stay one channel; all others become RGB. Hidden names are left out, links are followed once.

    Args:
        root: The folder.
        image_size: The shorter side is resized to it and the middle is cut out square. None keeps the size
            that all images share, or takes `DEFAULT_SIZE` if they differ.
        stream: Whether pictures are read when they are needed; None decides by the memory there is.
        notes: Gets a remark for all that is left out, reduced or guessed.

    Raises:
        DataError: No classes, no images, a damaged image, or classes that differ between the parts.
    """
    folders = parts_of(root, notes)
    listings = list_pictures(folders, notes)
    train = listings["train"]
    for part, listing in listings.items():
        if listing.classes != train.classes:
            odd = sorted(set(train.classes) ^ set(listing.classes))
            raise DataError(
                f"{root}: expected equal class folders in {folders['train'].name} and {folders[part].name}, got "
                f"{odd[0]!r} in one only"
            )
    known = _scan(root, [path for listing in listings.values() for path in listing.paths], notes)
    size, words = image_size, ""
    if size is None and len(known.sizes) > 1:
        size = DEFAULT_SIZE
        notes.add(f"pictures of {len(known.sizes)} sizes are resized to {size}x{size}: choose with image_size")
    if size is not None and known.sizes != {(size, size)}:
        words = f"resized to {size}x{size}"
    width, height = next(iter(known.sizes)) if size is None else (size, size)
    shape = (3 if known.colour else 1, height, width)
    count = sum(len(listing.paths) for listing in listings.values())
    if stream is None:
        stream = count * int(np.prod(shape)) > room_for_images()
    parts = {}
    for part, listing in listings.items():
        reader = FolderReader(tuple(listing.paths), shape, size is not None, known.drop)
        images = StreamedImages(reader, shape) if stream else _in_memory(reader, notes)
        parts[part] = Part(images, torch.tensor(listing.labels, dtype=torch.int64))
    return Raw(parts["train"], parts.get("valid"), parts.get("test"), tuple(train.classes), resized=words)


@dataclass(frozen=True)
class FolderReader:
    """Reads the pictures of a list of files.

    Attributes:
        paths: The files.
        shape: ``(C, H, W)`` of every image.
        resize: Whether pictures are brought to that size; else they must have it.
        drop: Bits that pixels of 16 bits lose.
    """

    paths: tuple[str, ...]
    shape: tuple[int, int, int]
    resize: bool
    drop: int
    random: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.paths)

    def whole(self, row: int, seed: int = 0, notes: Notes | None = None) -> Tensor:
        """A picture in its own size, uint8 ``[C, h, w]``; nothing about it is random."""
        found = eight_bits(file_pixels(self.paths[row], notes or Notes()), self.drop)
        if len(found) > self.shape[0]:
            raise DataError(f"{self.paths[row]} has colour, unlike the pictures looked at before: convert all to RGB")
        return torch.from_numpy(with_channels(found, self.shape[0]))

    def fit(self, image: Tensor, row: int) -> Tensor:
        """A picture in the size of the set, ``[C, H, W]``."""
        if self.resize:
            return torch.from_numpy(resized(image.numpy(), self.shape[1]))
        if tuple(image.shape) != self.shape:
            raise DataError(
                f"{self.paths[row]} expected pixels [C, H, W] = {list(self.shape)} as the others, got "
                f"{list(image.shape)}: give an image_size"
            )
        return image

    def state(self) -> list[str]:
        """What identifies the files: name within its class, and length."""
        return [f"{'/'.join(Path(path).parts[-2:])} {os.path.getsize(path)}" for path in self.paths]


def _in_memory(reader: FolderReader, notes: Notes) -> Tensor:
    images = torch.empty((len(reader), *reader.shape), dtype=torch.uint8)
    for row in range(len(reader)):
        images[row] = reader.fit(reader.whole(row, notes=notes), row)
    return images


@dataclass
class _Known:
    """What the headers of pictures say: sizes (width, height), whether any has colour, bits to drop."""

    sizes: set[tuple[int, int]]
    colour: bool
    drop: int


def _scan(root: Path, paths: list[str], notes: Notes) -> _Known:
    if len(paths) > SCAN:
        paths = [paths[row * len(paths) // SCAN] for row in range(SCAN)]
    known, deep, upper = _Known(set(), False, 0), -1, -1
    for path in paths:
        with open_picture(path) as image:
            known.sizes.add(upright_size(image))
            known.colour |= not is_grey(image)
            sixteen, colour = image.mode.startswith("I"), is_deep_colour(image)
        if colour:
            upper = max(upper, int(file_pixels(path, Notes()).max()))
        if sixteen:
            deep = max(deep, int(file_pixels(path, Notes()).max()))
    if 0 <= upper < 128:
        raise DataError(
            f"{root} has pictures in colour of 16 bits that use the lower ones, of which Pillow keeps {upper + 1} levels: "
            "convert them to 8 bits"
        )
    known.drop = bits_to_drop(deep, notes) if deep >= 0 else 0
    return known
