"""Layers are timed at the widths that a cut can leave; clocks are made up but in the last test."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.channels import timing
from pyrobnn.errors import ConfigError
from pyrobnn.io.measured import Measurements


@pytest.fixture(autouse=True)
def empty(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(timing.TIMES, "known", {})
    monkeypatch.setattr(timing.ROUNDED, "known", {})
    monkeypatch.setattr(Measurements, "file", tmp_path / "times.json")


@pytest.fixture
def ticking(monkeypatch: Any) -> None:
    """Each torch call of a network takes a second, each layer alone a millisecond for every number that it returns."""
    clock = itertools.count().__next__
    monkeypatch.setattr(timing, "stopwatch", lambda device: clock)
    monkeypatch.setattr(timing, "_milliseconds", lambda call, device, passes=0: float(call().numel()))


def calls_of(net: nn.Module, x: torch.Tensor) -> list[timing._Called]:
    return [call for call in timing.timed_calls(net, (x,))[0] if call.is_layer]


@pytest.mark.parametrize(
    ("layer", "x", "at", "returned"),
    [
        (nn.Conv2d(4, 6, 3, stride=2), (2, 4, 9, 9), (5, 3), (2, 5, 4, 4)),
        (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 5, 5), (2, 1), (2, 2, 5, 5)),
        (nn.Conv2d(8, 8, 1, groups=2, bias=False), (2, 8, 5, 5), (6, 3), (2, 6, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 3, 3), (3, 5), (1, 5, 6, 6)),
        (nn.Conv1d(4, 6, 3), (2, 4, 9), (1, 1), (2, 1, 7)),
        (nn.Linear(5, 7), (3, 5), (4, 2), (3, 4)),
        (nn.Linear(5, 7, bias=False), (3, 2, 5), (4, 2), (3, 2, 4)),
    ],
)
def test_a_layer_at_other_widths(
    layer: nn.Module, x: tuple[int, ...], at: tuple[int, int], returned: tuple[int, ...]
) -> None:
    (call,) = calls_of(layer, torch.randn(x))
    again: Callable[[], torch.Tensor] = call.at(*at, 2)
    assert again().shape == returned == again().shape
    assert call.at(*call.weight.shape[:2])().shape == layer(torch.randn(x)).shape


def test_the_layout_is_that_of_the_network() -> None:
    net = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    (call,) = calls_of(net, torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last))
    assert call.at(4, 3)().is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("ticking")
def test_what_is_measured_becomes_the_price() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    x = torch.randn(2, 1, 8, 8)
    table = pb.time_layers(net, pb.channel_groups(net, x), x)
    keep = {"0": torch.arange(8) < 2, "3": torch.arange(4) < 1}
    # A tick is a second, so 1,000 ms. Convolution and activation have one each, the normalisation two, since it also asks
    # for the number of axes; a layer's time goes with the numbers that it returns, which is its width.
    whole, left = table.cost(None).latency, table.cost(keep).latency
    gone = 1000 * (4 * 6 / 8 + (1 + 1) * 3 / 4)  # flattening follows the second convolution's width
    assert whole - left == pytest.approx(gone, rel=0.02)


@pytest.mark.usefixtures("ticking")
def test_layers_are_timed_once_for_a_network_and_device(monkeypatch: Any) -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.randn(2, 1, 8, 8)
    table = pb.channel_groups(net, x)
    first = pb.time_layers(net, table, x).cost(None).latency
    monkeypatch.setattr(timing.TIMES, "known", {})
    pb.time_layers(net, table, x, batch=2)  # beside the first in the file
    monkeypatch.setattr(timing, "_measure", lambda *given: pytest.fail("measured again"))
    monkeypatch.setattr(timing.TIMES, "known", {})  # another process
    assert pb.time_layers(net, table, x).cost(None).latency == first
    with pytest.raises(ConfigError, match="at least one example"):
        pb.time_layers(net, table, x, batch=0)


@pytest.mark.parametrize("block", [1, 4, 16])
def test_the_multiple_of_blocks_is_found(block: int, monkeypatch: Any) -> None:
    """A device that computes whole blocks of output channels gives the rest of a block for nothing."""

    def blocks(call: Callable[[], torch.Tensor], device: torch.device, passes: int = 0) -> float:
        return -(-call().shape[1] // block) * 10.0 + 1.0

    monkeypatch.setattr(timing, "_milliseconds", blocks)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU(), nn.Conv2d(96, 64, 3))
    assert timing.preferred_multiple(net, torch.randn(1, 3, 12, 12)) == block


def test_a_real_network_takes_what_its_layers_say() -> None:
    """The dense time is that of the whole pass; a quarter of the width takes much less of what widths change."""
    net, x = pb.nets.build("lenet5", in_channels=1, image_size=28), torch.randn(64, 1, 28, 28)
    table = pb.time_layers(net, pb.channel_groups(net, x), x, batch=64)
    assert table.facts.times is not None
    whole, fixed = table.cost(None).latency, table.facts.times.fixed
    few = {g.name: torch.arange(g.channels) < max(1, g.channels // 4) for g in table}
    assert 0 <= fixed < whole and table.cost(few).latency - fixed < 0.6 * (whole - fixed)
