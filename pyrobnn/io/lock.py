"""A lock of the operating system on a run directory, which is released when its holder ends."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyrobnn.errors import CheckpointError

LOCK = ".lock"  # only on Windows
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_held: set[int] = set()


def _of_the_parent() -> None:
    """A fork has the locks of its parent: a worker that reads images would keep them when its parent is killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_of_the_parent)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process, or say that another one does.

    On POSIX the folder itself is locked and no file is left; Windows, which cannot open folders, locks
    a file ``.lock`` in it. A file system without locks is used without one, with a warning.

    Raises:
        CheckpointError: somebody else holds it.
    """
    folder = Path(folder)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT) if sys.platform == "win32" else os.open(folder, os.O_RDONLY)
    _held.add(handle)
    try:
        try:
            _acquire(handle)
        except OSError as error:
            if error.errno in _BUSY:
                raise CheckpointError(
                    f"--out {folder} is in use by another run: wait for it to end, or choose another directory"
                ) from error
            warnings.warn(
                f"the file system of {folder} has no locks ({error.strerror}): see to it that one run writes there",
                stacklevel=3,
            )
        yield
    finally:
        if handle in _held:  # else a fork comes out of here
            _held.remove(handle)
            os.close(handle)  # releases the lock


def _acquire(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
