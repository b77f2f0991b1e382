"""Single weights to zero: the mask, its price, its report, and that it holds while tuning."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.errors import ConfigError
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.fit import fit
from pyrobnn.pipeline.sparsity import KeepZeros, SupportPrice, _line, masks, nonzero_share, support_report

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(256), valid=full.valid.take(60), test=full.test.take(120))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_zeros_stay_while_the_rest_learns(data: Data, optimizer: str) -> None:
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    keep = {n: torch.rand(p.shape) < 0.5 for n, p in net.named_parameters() if p.dim() > 1}
    model = pb.BayesianModel(net, data_size=len(data.train))
    fit(model, NoLatents(), data, epochs=1, lr=0.01, optimizer=optimizer, events=[KeepZeros(keep)], progress=False)
    after = dict(model.net.named_parameters())
    for name, mask in keep.items():
        assert torch.equal(after[name] == 0, ~mask)
        assert bool((after[name][mask] != dict(net.named_parameters())[name][mask]).float().mean() > 0.9)


def test_a_line_keeps_the_asked_number() -> None:
    odds = {"a": torch.randn(7, 5), "b": torch.randn(4, 3, 2, 2)}
    values = torch.cat([v.flatten() for v in odds.values()])
    for count in (3, 20, 50, len(values)):
        keep = masks(odds, _line(odds, count))
        kept = torch.cat([k.flatten() for k in keep.values()])
        assert int(kept.sum()) == count
        assert count == len(values) or float(values[kept].min()) > float(values[~kept].max())
    only = masks({"a": torch.full((2, 2), -3.0), "b": torch.tensor([[5.0, -9.0]])}, torch.zeros(()))
    assert bool(only["a"].any()) and only["b"].tolist() == [[True, False]]  # no tensor goes out altogether


def test_the_report_counts_runs_and_kernels_by_hand() -> None:
    mask = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 1] = mask[0, 0, 1, 0] = mask[0, 2, 1, 1] = True  # rows 0110 0000 0001
    mask[1, 1] = True  # rows 0000 1111 0000
    report = support_report({"w": mask})
    runs = sum(sum(1 for value, _ in itertools.groupby(row) if value) for row in mask.reshape(2, -1).tolist())
    assert (report["weights"], report["kept"]) == (24, 7)
    assert report["mean_run"] == pytest.approx(7 / runs) and runs == 3
    assert (report["kernels"], report["empty_kernels"]) == (6, 3)


def test_runs_by_chance_against_simulation() -> None:
    torch.manual_seed(0)
    mask = torch.rand(4000, 30) < 0.3
    report = support_report({"w": mask, "v": torch.rand(4000, 20) < 0.05})
    assert report["mean_run"] == pytest.approx(report["mean_run_by_chance"], rel=0.01)


def _loop(odds: float) -> Any:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    guide = SimpleNamespace(
        weight_odds=lambda: {"0.weight": torch.full((3, 4), odds)}, moments=lambda: {"0.weight": 0, "0.weight.gate": 0}
    )
    return SimpleNamespace(model=SimpleNamespace(net=net), guide=guide, step=20)


def test_the_price_follows_the_share() -> None:
    loop = _loop(1.0)
    total = sum(p.numel() for p in loop.model.net.parameters())
    assert nonzero_share(loop.model.net, loop.guide.weight_odds(), total) == 1.0
    event = SupportPrice(0.6, total, rate=0.25)
    event.on_start(loop)
    asked = event.on_batch_end(loop)
    assert asked is not None and asked.kl_weights == {"0.weight.gate": 1.25}  # slabs are not priced
    few = _loop(-1.0)
    assert nonzero_share(few.model.net, few.guide.weight_odds(), total) == pytest.approx((total - 12) / total)
    again = SupportPrice(0.6, total, rate=0.25)
    again.load_state_dict(event.state_dict())
    again.on_start(few)
    again.on_batch_end(few)
    assert again.multiplier == pytest.approx(1.0)
    few.step = 21
    again.on_batch_end(few)
    assert again.multiplier == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="goal"):
        SupportPrice(0.0, 10.0)


@pytest.mark.parametrize("method", ["turbo-vbi", "ss-edge"])
def test_a_target_on_what_is_not_zero(method: str, data: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = pb.compress(
        "small_cnn", data, method, target_macs=0.5, target_nonzero=0.2, epochs=8, out=out, progress=False
    )
    report = result.report
    dense, small = report["dense"], report["compact"]
    assert 0.42 < small["macs"] / dense["macs"] <= 0.5
    assert 0.19 < small["nonzero_params"] / dense["params"] <= 0.2 < small["params"] / dense["params"]
    zeros = report["zeros"]
    measured = {n: int(p.count_nonzero()) for n, p in result.compact.named_parameters() if p.dim() > 1}
    assert measured == zeros["kept_by_tensor"] and sum(measured.values()) == zeros["kept"]
    # The file uses the zeros, says its true size, and gives the same network.
    path = out / "compact.safetensors"
    assert small["bytes"] == path.stat().st_size < 4 * small["params"] < dense["bytes"]
    again = pb.load_compact(out)
    assert torch.equal(again(data.example), result.compact(data.example))


def test_a_target_for_a_method_without_zeros_is_refused(data: Data) -> None:
    with pytest.raises(
        ConfigError, match=r"--target-nonzero needs a method that zeroes single weights \(ss-edge, turbo"
    ):
        pb.compress("small_cnn", data, "gaussian", target_nonzero=0.2, epochs=4, progress=False)
    with pytest.raises(ConfigError, match="--target-nonzero is the share"):
        pb.compress("small_cnn", data, "turbo-vbi", target_nonzero=1.5, epochs=4, progress=False)


def test_within_a_drop_zeros_respect_the_floor(data: Data) -> None:
    result = pb.compress("small_cnn", data, "turbo-vbi", max_drop=2.0, epochs=12, progress=False)
    report = result.report
    assert report["rule"] == "max-drop"
    kept = {n: int(p.count_nonzero()) for n, p in result.compact.named_parameters() if p.dim() > 1}
    assert kept == report["zeros"]["kept_by_tensor"]
