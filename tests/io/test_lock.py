"""One process per directory; the death of the holder releases it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyrobnn.errors import CheckpointError
from pyrobnn.io.lock import LOCK, locked
from pyrobnn.io.manifest import write_manifest

HOLD = """
import sys, time
from pyrobnn.io.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_and_the_first_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CheckpointError, match="in use by another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
    assert sys.platform == "win32" or not list(tmp_path.iterdir())


def test_an_error_releases_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError), locked(tmp_path):
        raise ValueError
    with locked(tmp_path):
        pass


def test_a_killed_holder_releases_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="in use"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path):
            pass


def test_a_fork_does_not_keep_it(tmp_path: Path) -> None:
    (up, here), (end, told) = os.pipe(), os.pipe()
    with locked(tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # forks of a process with threads
            child = os.fork()
        if child == 0:
            os.write(here, b".")
            os.read(end, 1)
            os._exit(0)
        os.read(up, 1)
        with pytest.raises(CheckpointError, match="in use"), locked(tmp_path):
            pass
    try:
        with locked(tmp_path):
            pass
    finally:
        os.write(told, b".")
        os.waitpid(child, 0)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.warns(UserWarning, match="has no locks"), locked(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="plays Windows")
def test_the_way_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of a file is locked there, which a second handle cannot do; the file is no part of the run."""
    held: dict[tuple[int, int], int] = {}  # the handle that holds a file, by the file
    close = os.close

    def locking(handle: int, mode: int, length: int) -> None:
        assert (mode, length) == (2, 1)
        status = os.fstat(handle)
        if held.setdefault((status.st_dev, status.st_ino), handle) != handle:
            raise OSError(errno.EACCES, "Permission denied")

    def closing(handle: int) -> None:
        for key in [key for key, holder in held.items() if holder == handle]:
            del held[key]
        close(handle)

    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("os.close", closing)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))  # type: ignore[misc]
    with locked(tmp_path), pytest.raises(CheckpointError, match="in use by another run"), locked(tmp_path):
        pass
    assert not held
    with locked(tmp_path):
        assert len(held) == 1
        (tmp_path / "report.json").write_text("{}")
        manifest = write_manifest(tmp_path)
    assert not held and (tmp_path / LOCK).exists() and LOCK not in manifest.read_text()
