"""Which precision `auto` means is measured once, kept, and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.inference import measuring, precision
from pyrobnn.inference.callbacks import Callback
from pyrobnn.inference.measuring import milliseconds, multiply_accumulates
from pyrobnn.inference.precision import resolve_precision
from pyrobnn.io.measured import Measurements

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(measuring.MEASURED, "known", {})
    monkeypatch.setattr(Measurements, "file", tmp_path / "cache" / "precision.json")


def wide(width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(), nn.LazyLinear(4))


def made(width: int = 32) -> tuple[nn.Module, torch.Tensor]:
    net, x = wide(width), torch.randn(2, 3, 16, 16)
    net(x)
    return net, x


def test_multiply_accumulates_by_hand() -> None:
    net, x = made()
    by_hand = 14 * 14 * 32 * 27 + 12 * 12 * 32 * 288 + 4 * 12 * 12 * 32
    assert multiply_accumulates(net, x) == by_hand == pb.channel_groups(net, x).cost(None).macs


@pytest.mark.parametrize(("bf16", "dtype"), [(5.0, torch.bfloat16), (9.9, None), (20.0, None)])
def test_the_faster_one_is_taken_and_remembered(bf16: float, dtype: Any, monkeypatch: Any) -> None:
    asked: list[int] = []

    def timed(net: nn.Module, x: torch.Tensor) -> dict[str, float]:
        asked.append(len(x))
        return {"fp32": 10.0, "bf16": bf16}

    monkeypatch.setattr(measuring, "_timed", timed)
    net, x = made()
    assert resolve_precision("auto", CPU, net, x) is dtype
    assert resolve_precision("auto", CPU, made(40)[0], x) is dtype  # the same layers, cut or not
    monkeypatch.setattr(measuring.MEASURED, "known", {})  # another process
    assert resolve_precision("auto", CPU, net, x) is dtype and asked == [128]
    measuring.MEASURED.file.write_text("{broken")
    monkeypatch.setattr(measuring.MEASURED, "known", {})
    assert resolve_precision("auto", CPU, net, x) is dtype and asked == [128, 128]
    assert resolve_precision("fp32", CPU, net, x) is None


def test_small_networks_are_not_timed(monkeypatch: Any) -> None:
    monkeypatch.setattr(measuring, "_timed", lambda net, x: pytest.fail("timed"))
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    assert resolve_precision("auto", CPU, net, torch.randn(2, 1, 8, 8)) is None


def test_a_trial_leaves_the_network_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.Flatten(), nn.Linear(24 * 64, 4)).eval()
    x = torch.randn(2, 3, 10, 10)
    before, state = {n: v.clone() for n, v in net.state_dict().items()}, torch.get_rng_state()
    times = measuring._timed(net, x.repeat(4, 1, 1, 1))
    assert set(times) == {"fp32", "bf16"} and min(times.values()) > 0
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items()) and not net.training
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in net.parameters())
    assert milliseconds(net, x) is None


def test_a_fit_goes_on_as_it_began(monkeypatch: Any, tmp_path: Path) -> None:
    data = pb.load_data("digits")
    data = replace(data, train=data.train.take(64))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 32, "progress": False, "validate": False}
    first = pb.BayesianModel(net, data_size=64)

    class Stop(Callback):
        def on_epoch_end(self, state: Any) -> None:
            if stop and state.epoch == 2:
                raise KeyboardInterrupt

    stop = True
    monkeypatch.setattr("pyrobnn.inference.loop.resolve_precision", lambda *a: torch.bfloat16)
    with pytest.raises(KeyboardInterrupt):
        pb.fit(first, pb.guides.NoLatents(), data, callbacks=[Stop()], checkpoint=tmp_path / "c.pt", **settings)
    stop = False
    monkeypatch.setattr("pyrobnn.inference.loop.resolve_precision", lambda *a: None)
    again = pb.BayesianModel(net, data_size=64)
    pb.fit(
        again, pb.guides.NoLatents(), data, callbacks=[Stop()], checkpoint=tmp_path / "c.pt", resume=True, **settings
    )
    assert again.autocast is torch.bfloat16
