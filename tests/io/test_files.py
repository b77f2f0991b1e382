"""Files appear whole or not at all, temporaries are swept, and only ordinary files are read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyrobnn.errors import CheckpointError
from pyrobnn.io.files import is_temporary, parse_json, read_bytes, sweep, write_bytes, write_json


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "deep" / "a.bin", b"one")
    write_bytes(path, memoryview(b"three"))
    assert path.read_bytes() == b"three" and [p.name for p in path.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file_and_names_it(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bytes(tmp_path / "a.bin", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", ".a.bin.1.tmp")

    monkeypatch.setattr(call, full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_bytes(path, b"new")
    assert raised.value.filename == str(path)
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", lambda *a, open=open, **k: open("/dev/full", "wb"))
    with pytest.raises(OSError) as raised:
        write_bytes(tmp_path / "a.bin", b"x" * 100_000)
    assert raised.value.errno == errno.ENOSPC and os.listdir(tmp_path) == []


def test_a_link_stays_and_a_device_is_not_replaced(tmp_path: Path) -> None:
    file, link, pipe = (tmp_path / name for name in ("file", "link", "pipe"))
    file.write_bytes(b"old")
    link.symlink_to(file)
    assert write_bytes(link, b"new") == file
    assert link.is_symlink() and file.read_bytes() == b"new"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path(os.devnull)):
        with pytest.raises(OSError, match="not a file"):
            write_bytes(path, b"x")
    assert pipe.is_fifo() and sorted(os.listdir(tmp_path)) == ["file", "link", "pipe"]


def test_only_temporaries_are_swept(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    left = [tmp_path / ".report.json.4711.tmp", tmp_path / "stages" / ".1-dense.pt.12.tmp"]
    stay = [tmp_path / name for name in ("report.json", ".hidden", "a.tmp", ".b.tmp", ".c.x.tmp")]
    for path in left + stay:
        path.write_text("x")
    assert sorted(sweep(tmp_path)) == sorted(left)
    assert all(path.exists() for path in stay) and not any(path.exists() for path in left)
    assert is_temporary(left[0]) and not is_temporary(stay[0])


def test_what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", ".", "a\0b"):
        with pytest.raises(CheckpointError, match="not found|not a file|cannot be read"):
            read_bytes(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'"a"', b"[" * 100_000, b"1" * 5000])
def test_what_is_no_json_object(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^run/x\.json is damaged") as raised:
        parse_json(data, "run/x.json")
    assert len(str(raised.value).splitlines()) == 1


def test_json_round_trip(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert parse_json(read_bytes(path), path) == {"a": [1, 2.5, None]}
