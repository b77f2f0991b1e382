"""``.npz`` files in the Keras layout."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyrobnn.data.memory import free_memory
from pyrobnn.data.notes import Notes
from pyrobnn.data.raw import Part, Raw, as_pixels, joined_bits
from pyrobnn.data.targets import as_targets
from pyrobnn.errors import DataError
from pyrobnn.io.files import write_bytes

KEYS = ("x_train", "y_train", "x_test", "y_test")
#: Names of a validation part, which a file may have too.
VALID = (("x_valid", "y_valid"), ("x_val", "y_val"))
#: Bytes that any file may unpack to, and how many times its own length beyond that.
ANY_FILE, TIMES = 1 << 28, 200

# Decompressing CIFAR-10 takes seconds: the last files read are kept, and known again by time and size.
_KEPT: dict[tuple[str, int, int, str | None], Raw] = {}
_KEEP = 2


def read_npz(path: Path, task: str | None = None) -> Raw:
    """Reads ``x_train, y_train, x_test, y_test``, once per process as long as the file does not change.

    ``x_valid, y_valid`` (or ``x_val, y_val``) are the validation part, if they are there.

    Raises:
        DataError: The file is missing or damaged, keys are missing, an array is not what it should be, or it would
            unpack to more than a file of its length can honestly hold.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"data file {path} not found: expected an .npz with {', '.join(KEYS)}") from error
    if not path.is_file():  # a pipe would make us wait for ever
        raise DataError(f"{path} is no ordinary file: expected an .npz with {', '.join(KEYS)}")
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size, task)
    if key not in _KEPT:
        raw = _read(path, status.st_size, task)
        while len(_KEPT) >= _KEEP:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = raw
    return _KEPT[key]


def _read(path: Path, length: int, task: str | None) -> Raw:
    try:
        with open(path, "rb") as opened:
            arrays, others = _arrays(path, opened, length)
    except DataError:
        raise
    except Exception as error:  # zip, zlib, lzma, bz2 and numpy raise whatever the bytes led them to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} is not a readable .npz ({reason}); "
            "write it again with np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
        ) from error
    where, notes = str(path), Notes()
    if others:
        notes.add(f"arrays of other names are left out: {', '.join(sorted(others))}")
    images = joined_bits({x: as_pixels(arrays[x], x, where, notes) for x in arrays if x.startswith("x_")}, notes)
    parts = {}
    for x, found in images.items():
        targets, task = as_targets(arrays["y" + x[1:]], "y" + x[1:], where, task, tuple(found.shape[2:]))
        parts[x[2:]] = Part(found, targets)
    notes.warn(path.name)
    valid = parts.get("valid", parts.get("val"))
    return Raw(parts["train"], valid, parts["test"], task=task or "classification")


def _arrays(path: Path, opened: IO[bytes], length: int) -> tuple[dict[str, np.ndarray], set[str]]:
    """The arrays that are used, and the names of others."""
    if not zipfile.is_zipfile(opened):
        opened.seek(0)
        if opened.read(6) == b"\x93NUMPY":
            raise DataError(f"{path}: expected an .npz with {', '.join(KEYS)}, got one array; use np.savez")
        raise DataError(
            f"{path} is not a readable .npz (no archive); "
            "write it again with np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
        )
    opened.seek(0)
    with zipfile.ZipFile(opened) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        missing = [name for name in KEYS if name not in members]
        if missing:
            raise DataError(
                f"{path}: expected the keys {', '.join(KEYS)}, got {', '.join(members) or 'none'}; "
                f"{missing[0]!r} is missing"
            )
        valid = next((pair for pair in VALID if all(name in members for name in pair)), ())
        wanted = (*KEYS, *valid)
        unpacked = sum(members[name].file_size for name in wanted)
        if unpacked > max(ANY_FILE, TIMES * length) or unpacked > free_memory() // 2:
            raise DataError(
                f"{path} would unpack to {unpacked:,} bytes from {length:,}: that is more than it can honestly hold, or "
                "more than fits in memory; give an image folder instead"
            )
        return {name: _array(archive, members[name]) for name in wanted}, members.keys() - set(wanted)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; what its header promises is compared with what is there before memory is taken."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds objects")
        promised = dtype.itemsize
        for side in shape:
            promised *= int(side)
        if promised > info.file_size:
            raise ValueError(f"{info.filename} promises {promised:,} bytes and has {info.file_size:,}")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays; a reader never sees half a file.

    Raises:
        DataError: The folder cannot be written to.
    """
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    try:
        write_bytes(path, stream.getbuffer())
    except OSError as error:
        raise DataError(
            f"cannot write {path} ({error}): set PYROBNN_DATA to a folder with room that you may write to"
        ) from error
