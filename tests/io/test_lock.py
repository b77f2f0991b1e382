"""One process per directory; the death of the holder releases it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyrobnn.errors import CheckpointError
from pyrobnn.io.lock import locked

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


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.warns(UserWarning, match="has no locks"), locked(tmp_path):
        pass
