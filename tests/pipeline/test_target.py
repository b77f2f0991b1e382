"""A target is a contract: what was asked for, what was reached, and who is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pyrobnn as pb
from pyrobnn import cli
from pyrobnn.channels import PruningPlan
from pyrobnn.data import Data
from pyrobnn.metrics.metric import accuracy, rmse
from pyrobnn.pipeline import acceptance, search
from pyrobnn.pipeline.target import complaints, drop_interval, outcome

DENSE, COMPACT = {"macs": 100, "params": 50, "nonzero_params": 50}, {"macs": 30, "params": 20, "nonzero_params": 5}


def found(asked: dict[str, float], base: float | None = None, tuned: float | None = None) -> dict[str, Any]:
    return outcome(asked, DENSE, COMPACT, base=base, tuned=tuned)


def test_sizes_and_drops() -> None:
    both = found({"target_macs": 0.3, "target_params": 0.39})
    assert both["target_macs"] == 0.3 and both["asked"] == {"target_macs": 0.3, "target_params": 0.39}
    assert both["reached"] == {"target_macs": 0.3, "target_params": 0.4} and both["met"] is False
    assert found({"target_nonzero": 0.1})["met"] is True
    drop = found({"max_drop": 1.0}, 0.95, 0.935)
    assert drop["reached"]["max_drop"] == pytest.approx(1.5) and drop["met"] is False
    assert found({"max_drop": 1.0}, 0.95, 0.94)["met"] is True  # the line itself is allowed
    assert found({}) == {}


def test_a_measured_time_is_met_within_what_timing_tells_apart() -> None:
    for latency, met in ((0.45, True), (0.549, True), (0.56, False)):
        said = outcome({"target_latency": 0.5}, DENSE, COMPACT, base=None, tuned=None, latency=latency)
        assert said["reached"] == {"target_latency": latency} and said["met"] is met
    assert "56.0 % of the latency left where 50 % were asked for" in complaints(said, cut=True)[0]


def test_what_is_said() -> None:
    assert complaints({}, cut=True) == [] and complaints(found({"target_macs": 0.3}), cut=True) == []
    missed = complaints(found({"max_drop": 1.0}, 0.95, 0.935), cut=True)
    assert missed == [
        "the target was missed: 1.50 points of validation accuracy lost where 1 were allowed: give it more --epochs or ask for less"
    ]
    assert (
        "40.0 % of the parameters left where 39 % were asked for"
        in complaints(found({"target_params": 0.39}), cut=True)[0]
    )
    assert "--max-drop or --target-macs" in complaints({}, cut=False)[0]
    little = complaints({}, cut=True, removed={"macs": 0.014, "params": 0.03, "nonzero_params": 0.03})
    assert (
        "removes 1.4 % of the MACs and 3.0 % of the parameters" in little[0]
        and "--max-drop or --target-macs" in little[0]
    )
    assert complaints({}, cut=True, removed={"macs": 0.45, "params": 0.1}) == []
    assert complaints(found({"target_params": 0.4}), cut=True, removed={"macs": 0.01, "params": 0.01}) == []
    assert "larger --max-drop" in complaints(found({"max_drop": 1.0}, 0.9, 0.9), cut=False)[0]


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(200), valid=full.valid.take(50), test=full.test.take(60))


def test_the_interval_covers_the_drop_and_is_wide_on_few_images() -> None:
    right, three_wrong = torch.ones(50, 1), torch.ones(50, 1)
    three_wrong[:3] = 0.0
    low, high = drop_interval(accuracy(), right, three_wrong)
    assert low < 6.0 < high and high - low > 5
    same = drop_interval(accuracy(), three_wrong, three_wrong)
    assert same[0] == pytest.approx(-same[1])
    error = drop_interval(rmse(), torch.full((50, 1), 1.0), torch.full((50, 1), 4.0))  # 1 and 2: a loss of 1
    assert error == pytest.approx((1.0, 1.0))


def test_where_every_attempt_misses_the_dense_network_comes_back_with_a_warning(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "holds", lambda *given: False)
    monkeypatch.setattr(search, "largest_cut", lambda net, table, *rest, **options: PruningPlan.full(table))
    options: dict[str, Any] = {"max_drop": 1.0, "epochs": 8, "precision": "fp32", "progress": False}
    with pytest.warns(UserWarning, match="nothing was cut"):
        result = pb.compress("small_cnn", data, "gaussian", **options)
    target = result.report["target"]
    assert result.plan.is_full and result.report["compact"]["macs"] == result.report["dense"]["macs"]
    assert target["max_drop"] == 1.0 and target["met"] is True and target["reached"]["max_drop"] == 0
    assert len(target["interval"]) == 2 and target["interval"][0] < 0 < target["interval"][1]


def test_an_uncut_network_is_never_returned_in_silence(data: Data) -> None:
    with pytest.warns(UserWarning, match="nothing was cut"):
        result = pb.compress("small_cnn", data, "gaussian", min_channels=64, epochs=3, precision="fp32", progress=False)
    assert result.plan.is_full


@pytest.mark.filterwarnings("ignore:the target was missed")
def test_strict_exits_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrobnn.compression.result.outcome", lambda *args, **kwargs: found({"target_macs": 0.2}))
    arguments = [
        "compress",
        "--model",
        "small_cnn",
        "--data",
        "digits",
        "--target-macs",
        "0.5",
        "--epochs",
        "3",
        "--method",
        "l1",
    ]
    for strict, code in (((), 0), (("--strict",), 3)):
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, *strict, "--out", str(tmp_path / f"run{code}")])
        assert stop.value.code == code
        assert (tmp_path / f"run{code}" / "report.json").exists()
