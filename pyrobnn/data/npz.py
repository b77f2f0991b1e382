"""``.npz`` files in the Keras layout."""

from __future__ import annotations

import io
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

import numpy as np

from pyrobnn.data.raw import Raw, as_images, as_labels
from pyrobnn.errors import DataError
from pyrobnn.io.files import write_bytes

KEYS = ("x_train", "y_train", "x_test", "y_test")

# Decompressing CIFAR-10 takes seconds: the last files read are kept, and known again by time and size.
_KEPT: dict[tuple[str, int, int], Raw] = {}
_KEEP = 2


def read_npz(path: Path) -> Raw:
    """Reads ``x_train, y_train, x_test, y_test``, once per process as long as the file does not change.

    Raises:
        DataError: The file is missing or damaged, keys are missing, or an array is not what it should be.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"data file {path} not found: expected an .npz with {', '.join(KEYS)}") from error
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    if key not in _KEPT:
        raw = _read(path)
        while len(_KEPT) >= _KEEP:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = raw
    return _KEPT[key]


def _read(path: Path) -> Raw:
    try:
        with open(path, "rb") as opened:  # np.load leaves a damaged file open
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(
                    f"{path}: expected an .npz with {', '.join(KEYS)}, got one array; use np.savez"
                )
            missing = [name for name in KEYS if name not in file]
            if missing:
                raise DataError(
                    f"{path}: expected the keys {', '.join(KEYS)}, got {', '.join(file.files) or 'none'}; "
                    f"{missing[0]!r} is missing"
                )
            arrays = {name: file[name] for name in KEYS}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, LZMAError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} is not a readable .npz ({reason}); "
            "write it again with np.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
        ) from error
    where = str(path)
    return Raw(
        x_train=as_images(arrays["x_train"], "x_train", where),
        y_train=as_labels(arrays["y_train"], "y_train", where),
        x_test=as_images(arrays["x_test"], "x_test", where),
        y_test=as_labels(arrays["y_test"], "y_test", where),
    )


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
