"""Budgets of multiply-accumulates, parameters, milliseconds, accuracy and minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.channels import timing
from pyrobnn.channels.times import LayerTimes
from pyrobnn.data import Data
from pyrobnn.errors import CheckpointError
from pyrobnn.io.measured import Measurements
from pyrobnn.report.headline import target_lines

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short


def left_after(result: pb.Result, key: str) -> float:
    return result.report["compact"][key] / result.report["dense"][key]


@pytest.mark.parametrize(("key", "target"), [("macs", 0.25), ("params", 0.3)])
def test_budget_is_hit(key: str, target: float, data: Data, short: dict[str, Any]) -> None:
    result = pb.compress("small_cnn", data, **{f"target_{key}": target}, **{**short, "epochs": 4})
    left = left_after(result, key)
    assert left <= target
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    table = pb.channel_groups(net, data.example)
    if target - left > 0.02:  # then one more unit anywhere must exceed it
        for group in table:
            masks = {n: torch.zeros(result.plan.channels[n], dtype=torch.float64) for n in result.plan.keep}
            for name, units in result.plan.keep.items():
                masks[name][units] = 1.0
            gone = (masks[group.name] == 0).nonzero()
            if len(gone):
                masks[group.name][gone[0]] = 1.0
                assert float(getattr(table.cost(masks), key)) > target * result.report["dense"][key]


def test_round_to_min_channels_and_protect(data: Data, short: dict[str, Any]) -> None:
    settings = {**short, "epochs": 4, "target_macs": 0.45}
    result = pb.compress("small_cnn", data, round_to=4, min_channels=6, protect=["fc1"], **settings)
    widths = result.report["compact"]["widths"]
    assert "fc1" not in result.plan.keep and "fc1" in result.report["refused"]
    assert result.compact.fc1.out_features == 64
    assert all(width % 4 == 0 and width >= 6 for width in widths.values())
    assert left_after(result, "macs") <= 0.45


def test_a_latency_is_planned_in_measured_milliseconds(
    data: Data, tmp_path: Path, monkeypatch: Any, short: dict[str, Any]
) -> None:
    """What was measured when a run began holds for its resume, whatever the clock says then; the report says what is left."""
    monkeypatch.setattr(Measurements, "file", tmp_path / "times.json")

    def one_ms(net: nn.Module, args: Any, cuttable: Any, batch: int) -> LayerTimes:
        first, second = (getattr(net, name).weight.shape[:2] for name in ("conv1", "conv2"))
        grids = [
            (torch.tensor([1, n]), torch.tensor([m]), torch.tensor([[1.0 / n], [1.0]])) for n, m in (first, second)
        ]
        return LayerTimes.of({"conv1.weight": [grids[0]], "conv2.weight": [grids[1]]}, 0.5, batch)

    monkeypatch.setattr(timing, "_measure", one_ms)
    monkeypatch.setattr(timing, "_multiple", lambda *given: 4)
    settings = {**short, "epochs": 4, "target_latency": 0.6, "out": tmp_path / "run"}
    result = pb.compress("small_cnn", data, round_to="auto", **settings)
    widths, dense = result.report["compact"]["widths"], result.report["dense"]["widths"]
    assert sum(widths[g] / dense[g] for g in ("conv1", "conv2")) + 0.5 <= 0.6 * 2.5
    assert all(width % 4 == 0 for width in widths.values()) and result.report["settings"]["round_to"] == 4
    target = result.report["target"]
    assert target["asked"] == {"target_latency": 0.6} and 0 < target["reached"]["target_latency"] < 2
    assert target["met"] is (target["reached"]["target_latency"] <= 0.65)
    assert "% of the latency" in " ".join(line["text"] for line in target_lines(result.report))
    monkeypatch.setattr(timing, "_multiple", lambda *given: 8)
    monkeypatch.setattr(timing.ROUNDED, "known", {})
    (tmp_path / "times.json").unlink()
    again = pb.compress("small_cnn", data, round_to="auto", resume=True, **settings)
    assert again.plan == result.plan
    with pytest.raises(CheckpointError, match="target_latency"):
        pb.compress("small_cnn", data, round_to="auto", resume=True, **{**settings, "target_latency": 0.7})


def test_both_targets_and_the_rule_without_any(data: Data, short: dict[str, Any]) -> None:
    both = pb.compress("small_cnn", data, target_macs=0.5, target_params=0.35, **{**short, "epochs": 3})
    assert left_after(both, "macs") <= 0.5 and left_after(both, "params") <= 0.35
    free = pb.compress("small_cnn", data, **{**short, "epochs": 3})
    assert free.report["rule"] == "evidence" and free.report["target"] == {}


def test_max_drop(data: Data, short: dict[str, Any]) -> None:
    result = pb.compress("small_cnn", data, max_drop=100.0, **{**short, "epochs": 12})
    assert result.report["rule"] == "max-drop" and left_after(result, "macs") < 1
    assert result.report["epochs"] <= 12
    none = replace(data, valid=replace(data.valid, images=data.valid.images[:0], labels=data.valid.labels[:0]))
    with pytest.raises(pb.ConfigError, match="validation"):
        pb.compress("small_cnn", none, max_drop=1.0, **short)


def test_minutes_bound_the_run(data: Data, short: dict[str, Any]) -> None:
    settings = {**short, "epochs": None, "minutes": 0.05}
    result = pb.compress("small_cnn", data, target_macs=0.5, **settings)
    assert 2 <= result.report["epochs"] < 200
    assert left_after(result, "macs") <= 0.5
