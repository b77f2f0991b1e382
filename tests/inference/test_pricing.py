"""Priced KL: weights follow marginal prices, the multiplier follows the constraint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.guides.noise import NormalNoise
from pyrobnn.guides.spike_slab import SpikeSlabGuide
from pyrobnn.inference.pricing import PricedKL
from pyrobnn.priors.noise import ARDNoise
from pyrobnn.priors.spike_slab import SpikeSlab


def _loop(step: int = 20) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    groups = pb.channel_groups(net, torch.zeros(2, 1, 8, 8))
    model = pb.BayesianModel(net, ARDNoise(), data_size=100, groups=groups)
    guide = NormalNoise(model)
    return SimpleNamespace(model=model, guide=guide, step=step, objective=SimpleNamespace(site_weights={}))


def _cost(loop: Any) -> tuple[float, float]:
    cost = loop.model.groups.cost(None)
    return float(cost.params), float(cost.macs)


def test_weights_are_marginal_prices_by_brute_force() -> None:
    loop = _loop()
    table = loop.model.groups
    PricedKL({"macs": 0.5}, _cost(loop), start=3.0, floor=0.0).on_start(loop)
    full = float(table.cost(None).macs)
    saved = {}
    for group in table:
        keep = {group.name: torch.arange(group.channels) > 0}
        saved[group.name] = full - float(table.cost(keep).macs)
    mean = sum(saved[g.name] * g.channels for g in table) / sum(g.channels for g in table)
    for group in table:
        expected = 3.0 * saved[group.name] / mean
        assert loop.objective.site_weights[f"{group.name}.noise"] == pytest.approx(expected, rel=1e-6)


def test_the_multiplier_rises_above_the_goal_and_falls_below_it() -> None:
    loop = _loop()
    event = PricedKL({"macs": 0.5}, _cost(loop), rate=0.1)
    event.on_start(loop)
    event.on_batch_end(loop)  # all channels carry signal: too much is left
    assert event.multiplier == pytest.approx(1.1)
    with torch.no_grad():
        for scale in loop.guide.log_scale.values():
            scale.fill_(3.0)  # SNR far below 1: next to nothing is needed
    event.on_batch_end(loop)
    assert event.multiplier == pytest.approx(1.0)
    loop.step = 21
    event.on_batch_end(loop)
    assert event.multiplier == pytest.approx(1.0)  # only every 20 steps


def test_prices_change_as_neighbours_disappear() -> None:
    loop = _loop()
    event = PricedKL({"macs": 0.5}, _cost(loop), floor=0.0)
    event.on_start(loop)
    first = dict(loop.objective.site_weights)
    with torch.no_grad():
        loop.guide.log_scale["0|noise"][1:] = 3.0  # one channel of the first group is still needed
    event.on_batch_end(loop)
    ratio = {name: loop.objective.site_weights[name] / value for name, value in first.items()}
    assert ratio["2.noise"] < ratio["0.noise"]  # the second layer's filters have got cheaper


def test_gates_are_priced_alone_and_needed_from_one_half_on() -> None:
    loop = _loop()
    table = loop.model.groups
    model = pb.BayesianModel(loop.model.net, SpikeSlab(0.1, slab="gl"), data_size=100, groups=table)
    guide = SpikeSlabGuide(model)
    loop = SimpleNamespace(model=model, guide=guide, step=20, objective=SimpleNamespace(site_weights={}))
    event = PricedKL({"macs": 0.5}, _cost(loop), rate=0.1, floor=0.0, site="gate")
    event.on_start(loop)
    assert loop.objective.site_weights.keys() == {"0.gate", "2.gate"}
    event.on_batch_end(loop)
    assert event.multiplier == pytest.approx(1.1)
    with torch.no_grad():  # half of the first group: 11/22 of the MACs, and the price of the second goes with it
        guide.theta["0|gate"].copy_(torch.tensor([-0.1, 0.1, -5.0, 5.0]))
    before = dict(loop.objective.site_weights)
    event.on_batch_end(loop)
    ratio = {site: loop.objective.site_weights[site] / before[site] for site in before}
    assert ratio["2.gate"] < ratio["0.gate"]
    with torch.no_grad():
        guide.theta["0|gate"].fill_(-5.0)  # at least one channel counts as needed
    masks = event._needed(loop)
    assert masks["0"].sum() == 1 and masks["2"].sum() == 6


def test_state_and_bad_settings() -> None:
    loop = _loop()
    event = PricedKL({"params": 0.5}, _cost(loop))
    event.on_start(loop)
    event.on_batch_end(loop)
    other = PricedKL({"params": 0.5}, _cost(loop))
    other.load_state_dict(event.state_dict())
    assert other.multiplier == event.multiplier != 1.0
    with torch.no_grad():  # what is needed has changed since: a resumed fit goes on with the weights it had
        loop.guide.log_scale["0|noise"][1:] = 3.0
    again = SimpleNamespace(**{**vars(loop), "step": 27, "objective": SimpleNamespace(site_weights={})})
    other.on_start(again)
    assert again.objective.site_weights == loop.objective.site_weights
    again.step = 0  # a new fit reads its own
    other.on_start(again)
    assert again.objective.site_weights != loop.objective.site_weights
    with pytest.raises(ConfigError, match="goal"):
        PricedKL({}, (1.0, 1.0))
