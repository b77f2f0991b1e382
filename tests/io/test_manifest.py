"""Checksums of a directory: what changed is refused, what has none is read with one warning."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from pyrobnn.errors import CheckpointError
from pyrobnn.io.manifest import MANIFEST, RunFiles, add_to_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stages").mkdir()
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "stages" / "1.pt").write_bytes(b"stage")
    (tmp_path / ".b.json.7.tmp").write_text("half")
    write_manifest(tmp_path)
    return tmp_path


def test_all_files_are_listed_and_read(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    assert set(content["files"]) == {"a.json", "stages/1.pt"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with RunFiles(folder) as files:
            assert files.read_json("a.json") == {"a": 1} and files.read("stages/1.pt") == b"stage"
    assert files.has("a.json") and not files.has("c.json")


def test_changed_added_and_missing_files(folder: Path) -> None:
    files = RunFiles(folder)
    (folder / "a.json").write_text('{"a": 2}')
    with pytest.raises(CheckpointError, match="changed since"):
        files.read("a.json")
    (folder / "new").write_text("x")
    with pytest.raises(CheckpointError, match="not in manifest"):
        files.read("new")
    (folder / "stages" / "1.pt").unlink()
    assert files.has("stages/1.pt")
    with pytest.raises(CheckpointError, match="not found"):
        files.read("stages/1.pt")


def test_one_warning_without_a_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.warns(UserWarning, match=r"has no manifest\.json") as caught, RunFiles(folder) as files:
        assert files.read_json("a.json") == {"a": 1} and files.read("stages/1.pt")
    assert len(caught) == 1
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match="not found"):
        warnings.simplefilter("error")  # an error says enough
        with RunFiles(folder) as files:
            files.read("b.json")


def test_a_file_that_is_added_later(folder: Path, tmp_path: Path) -> None:
    (folder / "small.onnx").write_bytes(b"graph")
    add_to_manifest(folder, folder / "small.onnx")
    assert RunFiles(folder).read("small.onnx") == b"graph" and RunFiles(folder).read("a.json")
    before = (folder / MANIFEST).read_bytes()
    add_to_manifest(folder, __file__)
    assert (folder / MANIFEST).read_bytes() == before
    (folder / MANIFEST).unlink()
    add_to_manifest(folder, folder / "small.onnx")
    assert not (folder / MANIFEST).exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "files": {}}', '{"schema": 1, "files": []}']
)
def test_a_damaged_manifest_is_an_error(text: str, folder: Path) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        RunFiles(folder)
