"""Image folders: one sub-folder per class."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

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

#: Endings of files that are pictures.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
#: What a folder for a part of the data may be called, in any case of letters.
TRAIN, VALID, TEST = ("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing")
#: Files that operating systems leave behind.
_LITTER = ("thumbs.db", "desktop.ini")
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
    folders = _parts(root, notes)
    listings = _list(folders, notes)
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
class _Listing:
    classes: list[str]
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def _parts(root: Path, notes: Notes) -> dict[str, Path]:
    """The folders of the parts; ``train`` is the root itself where it has no such folders."""
    folders = _folders(root, Notes())  # said below, or by whoever lists the root
    found: dict[str, Path] = {}
    for part, names in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        fitting = [folder for folder in folders if folder.name.casefold() in names]
        if len(fitting) > 1:
            both = " and ".join(folder.name for folder in fitting)
            raise DataError(f"{root} has the folders {both}, either of which could be the {part} part: keep one")
        if fitting:
            found[part] = fitting[0]
    others = [folder for folder in folders if folder not in found.values()]
    if "train" not in found:
        if found and not others:
            raise DataError(f"{root} has {next(iter(found.values())).name} but no train folder: add {root / 'train'}")
        return {"train": root}
    if "test" not in found and "valid" in found:
        found["test"] = found.pop("valid")
    if "test" not in found:
        raise DataError(
            f"{root} has {found['train'].name} but no test folder: add {root / 'test'}, or leave out the level "
            f"{found['train'].name}"
        )
    _folders(root, notes)
    for folder in others:
        notes.add("folders beside train and test are left out", folder.name)
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror or error}): check its permissions") from error


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _folders(root: Path, notes: Notes) -> list[Path]:
    """The folders in a folder, without hidden ones."""
    found = []
    for entry in _entries(root):
        kind = _kind(entry, notes)
        if _hidden(entry.name):
            _say_hidden(entry, kind, notes)
        elif kind == "folder":
            found.append(root / entry.name)
        elif _is_picture(entry.name):
            notes.add("pictures outside of the class folders are left out", str(root / entry.name))
    return found


def _say_hidden(entry: os.DirEntry[str], kind: str, notes: Notes) -> None:
    if kind == "folder" or _is_picture(entry.name):
        notes.add("hidden names are left out", entry.name)


def _is_picture(name: str) -> bool:
    return name.casefold().endswith(ENDINGS)


def _kind(entry: os.DirEntry[str], notes: Notes) -> str:
    """``"folder"``, ``"file"`` or ``""`` for what can be neither listed nor read."""
    try:
        mode = entry.stat().st_mode
    except OSError:  # a link to nowhere or to itself
        notes.add("broken links are left out", entry.path)
        return ""
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "file"
    notes.add("what is neither file nor folder is left out", entry.path)  # opening a pipe would wait for ever
    return ""


def _list(folders: dict[str, Path], notes: Notes) -> dict[str, _Listing]:
    """The pictures of all parts. What can be reached by its own name is not listed again for a link to it."""
    classes = {part: _folders(folder, notes) for part, folder in folders.items()}
    for part, found in classes.items():
        if not found:
            raise DataError(f"{folders[part]}: expected one sub-folder with images per class, got no sub-folder")
    seen = {_identity(folder.stat()) for folder in folders.values()}
    paths: dict[Path, list[tuple[str, str]]] = {folder: [] for found in classes.values() for folder in found}
    for links in (False, True):
        for folder, listed in paths.items():
            if folder.is_symlink() and not (links and _new(folder.stat(), str(folder), seen, notes)):
                continue
            listed += _walk(folder, folder.is_symlink(), links, seen, notes)
    listings = {}
    for part, found in classes.items():
        listings[part] = _Listing([folder.name for folder in found])
        for label, folder in enumerate(found):
            if not paths[folder]:
                raise DataError(
                    f"{folders[part]}: expected one sub-folder with images per class, got no image in {folder.name!r} "
                    f"(endings {' '.join(ENDINGS)})"
                )
            listings[part].paths += [os.path.join(*path) for path in sorted(paths[folder])]
            listings[part].labels += [label] * len(paths[folder])
    return listings


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _walk(
    folder: Path, linked: bool, links: bool, seen: set[tuple[int, int]], notes: Notes
) -> Iterator[tuple[str, str]]:
    """(folder, name) of the pictures below a folder: those that a link leads to, or those that none does.

    Args:
        folder: Where to look.
        linked: Whether a link has led there.
        links: Which of the two are wanted.
        seen: What was found before; what is found is added.
        notes: Gets a remark for what is left out.
    """
    for entry in _entries(folder):
        through = linked or entry.is_symlink()
        wanted = through == links
        kind = _kind(entry, notes if wanted else Notes())
        if _hidden(entry.name):
            if wanted:
                _say_hidden(entry, kind, notes)
        elif kind == "folder":
            if not through or (links and _new(entry.stat(), entry.path, seen, notes)):
                if not through:
                    seen.add(_identity(entry.stat()))
                yield from _walk(folder / entry.name, through, links, seen, notes)
        elif kind == "file" and wanted and entry.name.casefold() not in _LITTER:
            if not _is_picture(entry.name):
                notes.add("files that are no pictures by their ending are left out", entry.path)
            elif _new(entry.stat(), entry.path, seen, notes):
                yield str(folder), entry.name


def _new(status: os.stat_result, name: str, seen: set[tuple[int, int]], notes: Notes) -> bool:
    """Whether a file or folder was not found before under another name."""
    if _identity(status) in seen:
        notes.add("what was found before under another name is left out", name)
        return False
    seen.add(_identity(status))
    return True


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
