"""Atomic writes: made in memory, written to a temporary file beside the target, flushed, then renamed.

Libraries that write files themselves (HDF5, safetensors, pickle) answer a full disk in many ways, a
crash among them. So they write into memory, and one checked write puts the bytes on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pyrobnn.errors import CheckpointError

_LONGEST_JSON = 2**26
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> Path:
    """Write a file that a reader sees whole or not at all, even after a power cut.

    Args:
        path: the file; missing folders are made.
        data: its content.

    Returns:
        The path written.

    Raises:
        OSError: the folder cannot be written to, the disk is full (an old file is then as it was), or the path is a
            device, a pipe or a folder.
    """
    target = Path(path)
    if target.is_symlink():  # what it points to is written, the link stays
        target = target.resolve()
    if target.exists() and not target.is_file():  # to put a file in its place would take a device away
        raise OSError(errno.EINVAL, "not a file, so it cannot be replaced", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        # Name the file that was asked for: the temporary name means nothing to a user.
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return target


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """As :func:`write_bytes`, in UTF-8."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], content: Any) -> Path:
    """As :func:`write_bytes`, for what JSON can hold."""
    return write_text(path, json.dumps(content, indent=2) + "\n")


def sweep(folder: str | Path) -> list[Path]:
    """Remove the temporary files that killed processes left in a folder and below it.

    Only for the owner of the folder (see :mod:`pyrobnn.io.lock`): a living writer has such a file too.

    Returns:
        What was removed.
    """
    found = [path for path in Path(folder).rglob(".*.tmp") if is_temporary(path) and path.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def is_temporary(path: Path) -> bool:
    """Whether a file has the name of one that :func:`write_bytes` had not finished."""
    return _TEMPORARY.fullmatch(path.name) is not None


def parse_json(data: bytes, path: str | Path) -> dict[str, Any]:
    """The JSON object in a file's bytes.

    Args:
        data: the content.
        path: where it came from, for the message.

    Raises:
        CheckpointError: not JSON, nested too deeply, or no object.
    """
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({first_line(error)}): run pyrobnn compress again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged (no JSON object): run pyrobnn compress again")
    return content


def read_bytes(
    path: str | Path, hint: str = "check the path", *, starts_right: Callable[[BinaryIO, int], bool] | None = None
) -> bytes:
    """The content of an ordinary file.

    Args:
        path: the file.
        hint: what to do if it cannot be read.
        starts_right: told the open file and its size, whether it is worth reading: a file of holes has any size.

    Raises:
        CheckpointError: no such file, another kind of file (a pipe would block for ever), or no permission.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file: {hint}" if path.exists() else f"{path} not found: {hint}")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if starts_right is not None and not starts_right(file, size):
                raise CheckpointError(f"{path} is damaged: copy it again")
            file.seek(0)
            return file.read()
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a null byte in the path
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}): {hint}") from error


def is_short(file: BinaryIO, size: int) -> bool:
    """Whether a file has a size that JSON of ours has."""
    return size <= _LONGEST_JSON


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut; where folders cannot be opened (Windows), the system sees to it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
