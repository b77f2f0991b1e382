"""A finished run read back whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.data import Data

SETTINGS: dict[str, Any] = {"epochs": 6, "target_macs": 0.5, "precision": "fp32", "progress": False}


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(200), valid=full.valid.take(40), test=full.test.take(60))


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested values differ; NaN equals NaN."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and torch.allclose(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)
        return [] if same else [path]
    if hasattr(one, "__dataclass_fields__"):
        return differences(vars(one), vars(other), path)
    if isinstance(one, dict):
        if set(one) != set(other):
            return [f"{path}: {set(one) ^ set(other)}"]
        return [line for key in one for line in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)}"]
        return [
            line for k, pair in enumerate(zip(one, other, strict=True)) for line in differences(*pair, f"{path}/{k}")
        ]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]


# A channel posterior by rounds, one group at a time, a posterior of weights, histories of filters.
@pytest.mark.parametrize("method", ["ard", "rbp", "gaussian", "hbfp"])
def test_a_run_comes_back_whole(method: str, data: Data, tmp_path: Path) -> None:
    result = pb.compress("small_cnn", data, method, out=tmp_path / "run", **SETTINGS)
    for path in (tmp_path / "run").glob("**/*.pt"):  # nothing is read from what a resume needs
        path.unlink()
    found = pb.load_run(tmp_path / "run")
    assert not differences(result.posterior, found.posterior)
    assert found.plan == result.plan and found.report == json.loads(json.dumps(result.report))
    assert torch.equal(found.compact(data.example), result.compact(data.example))
    assert found.posterior.plot() is not None


def test_your_own_module_and_a_control(data: Data, tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))

    result = pb.compress(make(), data, "l1", out=tmp_path / "own", **SETTINGS)
    without = pb.load_run(tmp_path / "own")
    assert without.compact is None and without.plan == result.plan
    assert not differences(result.posterior, without.posterior)
    compact = pb.load_run(tmp_path / "own", factory=make).compact
    assert torch.equal(compact(data.example), result.compact(data.example))
    with pytest.raises(pb.NetError):
        pb.load_run(tmp_path / "own", factory=lambda: nn.Linear(2, 2))


def test_what_is_no_run(tmp_path: Path, data: Data) -> None:
    with pytest.raises(pb.CheckpointError, match="report"):
        pb.load_run(tmp_path)
    pb.compress("small_cnn", data, "ard", out=tmp_path / "run", **SETTINGS)
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / "posterior.nc").write_bytes(b"no file of ours")
    with pytest.raises(pb.CheckpointError, match="posterior.nc is damaged"):
        pb.load_run(tmp_path / "run")
