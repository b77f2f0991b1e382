"""Methods by name: registered ones, and one of your own in one file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyrobnn import cli
from pyrobnn.errors import ConfigError
from pyrobnn.methods.registry import METHODS, get_method

FILE = """
from pyrobnn.guides import MeanField
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.priors import Gaussian

METHOD = Method(
    name="mine", title="mine", source="ours", cut_where="SNR < 1", prior=lambda: Gaussian(scale=1.0), guide=MeanField,
    recipes=recipes(rounds=1, kl_weight=0.1),
)
other = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_method_in_one_file_from_the_command_line(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(["compress", "--model", "small_cnn", "--data", "digits", "--method", f"{file}:METHOD",
                  "--target-macs", "0.5", "--epochs", "3", "--out", str(out)])  # fmt: skip
    assert stop.value.code == 0
    report = json.loads((out / "report.json").read_text())
    assert report["method"] == "mine" and report["reduction"]["macs"] >= 0.5


def test_what_is_no_method(file: Path) -> None:
    assert get_method(f"{file}:METHOD").name == "mine"
    with pytest.raises(ConfigError, match="has no Method 'other'"):
        get_method(f"{file}:other")
    with pytest.raises(ConfigError, match="cannot import 'no_such_module'"):
        get_method("no_such_module:METHOD")
    with pytest.raises(ConfigError, match=r"unknown method 'gausian': did you mean gaussian"):
        get_method("gausian")


def test_every_method_says_what_it_is() -> None:
    for name, method in METHODS.items():
        assert method.name == name and all((method.title, method.source, method.cut_where)), name
