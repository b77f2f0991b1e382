"""Objects that a user names in text."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from pyrobnn.errors import ConfigError, NetError
from pyrobnn.io.objects import named_object


def found(text: str) -> object:
    return named_object(text, "function or class", callable, NetError)


def test_a_file_anywhere_with_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some where"
    folder.mkdir()
    (folder / "neighbour_for_test.py").write_text("WIDTH = 5\n")
    (folder / "mine.py").write_text("from neighbour_for_test import WIDTH\nclass Net:\n    width = WIDTH\n")
    before = list(sys.path)
    net = found(f"{folder / 'mine.py'}:Net")
    monkeypatch.chdir(folder)
    assert found("mine.py:Net") is net and net.width == 5  # type: ignore[attr-defined]
    assert sys.path == before
    assert type(pickle.loads(pickle.dumps(net()))) is net  # type: ignore[operator]


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(f"def make(): return {value}\n")
    assert [found(f"{tmp_path / name / 'net.py'}:make")() for name in "ab"] == [1, 2]  # type: ignore[operator]


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NetError, match=r"no file 'not_there\.py'"):
        found("not_there.py:make")
    (tmp_path / "broken.py").write_text("def make(:\n")
    with pytest.raises(NetError, match="cannot import .*invalid syntax") as caught:
        found(f"{tmp_path / 'broken.py'}:make")
    assert "\n" not in str(caught.value)
    (tmp_path / "fails.py").write_text("raise RuntimeError('no GPU here')\n")
    for _ in range(2):  # a module that failed is not taken for one that loaded
        with pytest.raises(NetError, match="no GPU here"):
            found(f"{tmp_path / 'fails.py'}:make")
    with pytest.raises(ConfigError, match="no number 'jon': did you mean join"):
        named_object("os.path:jon", "number", lambda value: isinstance(value, int), ConfigError)
