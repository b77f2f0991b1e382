"""A short run on few digits that all tests of this folder can compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyrobnn as pb
from pyrobnn.data import Data


@pytest.fixture(scope="session")
def npz(few_digits: Callable[[Path, int, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, 300 to train and 150 to test, as a file that the command line can read again."""
    return few_digits(tmp_path_factory.mktemp("data"), 300, 150) / "few.npz"


@pytest.fixture(scope="session")
def data(npz: Path) -> Data:
    return pb.load_data(npz)


@pytest.fixture(scope="session")
def short() -> dict[str, Any]:
    """The settings of a short run."""
    return {"method": "gaussian", "epochs": 5, "precision": "fp32", "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def finished(npz: Path, short: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pb.Result]:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, pb.compress("small_cnn", npz, target_macs=0.4, out=out, **short)
