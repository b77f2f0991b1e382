"""Lists the pictures of an image folder by part and class; skips circular links and files that are no pictures."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyrobnn.data.notes import Notes
from pyrobnn.errors import DataError

#: Endings of files that are pictures.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
#: What a folder for a part of the data may be called, in any case of letters.
TRAIN, VALID, TEST = ("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing")
#: Files that operating systems leave behind.
_LITTER = ("thumbs.db", "desktop.ini")


@dataclass
class Listing:
    """Classes of one part, and its pictures with their labels."""

    classes: list[str]
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def parts_of(root: Path, notes: Notes) -> dict[str, Path]:
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


def list_pictures(folders: dict[str, Path], notes: Notes) -> dict[str, Listing]:
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
        listings[part] = Listing([folder.name for folder in found])
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
