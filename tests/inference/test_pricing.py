"""Priced KL: weights follow marginal prices, the multiplier follows the constraint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.guides.noise import NormalNoise
from pyrobnn.guides.spike_slab import SpikeSlabGuide
from pyrobnn.inference.callbacks import FitState
from pyrobnn.inference.pricing import PricedKL
from pyrobnn.priors.noise import ARDNoise
from pyrobnn.priors.spike_slab import SpikeSlab


def _state(step: int = 20) -> FitState:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    groups = pb.channel_groups(net, torch.zeros(2, 1, 8, 8))
    model = pb.BayesianModel(net, ARDNoise(), data_size=100, groups=groups)
    guide = NormalNoise(model)
    return FitState(model, guide, step=step)


def _cost(state: FitState) -> tuple[float, float]:
    cost = state.model.groups.cost(None)
    return float(cost.params), float(cost.macs)


def test_weights_are_marginal_prices_by_brute_force() -> None:
    state = _state()
    table = state.model.groups
    weights = PricedKL({"macs": 0.5}, _cost(state), start=3.0, floor=0.0).on_start(state).kl_weights
    full = float(table.cost(None).macs)
    saved = {}
    for group in table:
        keep = {group.name: torch.arange(group.channels) > 0}
        saved[group.name] = full - float(table.cost(keep).macs)
    mean = sum(saved[g.name] * g.channels for g in table) / sum(g.channels for g in table)
    for group in table:
        expected = 3.0 * saved[group.name] / mean
        assert weights[f"{group.name}.noise"] == pytest.approx(expected, rel=1e-6)


def test_the_multiplier_rises_above_the_goal_and_falls_below_it() -> None:
    state = _state()
    event = PricedKL({"macs": 0.5}, _cost(state), rate=0.1)
    event.on_start(state)
    event.on_batch_end(state)  # all channels carry signal: too much is left
    assert event.multiplier == pytest.approx(1.1)
    with torch.no_grad():
        for scale in state.guide.log_scale.values():
            scale.fill_(3.0)  # SNR far below 1: next to nothing is needed
    event.on_batch_end(state)
    assert event.multiplier == pytest.approx(1.0)
    assert event.on_batch_end(replace(state, step=21)) is None
    assert event.multiplier == pytest.approx(1.0)  # only every 20 steps


def test_prices_change_as_neighbours_disappear() -> None:
    state = _state()
    event = PricedKL({"macs": 0.5}, _cost(state), floor=0.0)
    first = event.on_start(state).kl_weights
    with torch.no_grad():
        state.guide.log_scale["0|noise"][1:] = 3.0  # one channel of the first group is still needed
    now = event.on_batch_end(state).kl_weights
    ratio = {name: now[name] / value for name, value in first.items()}
    assert ratio["2.noise"] < ratio["0.noise"]  # the second layer's filters have got cheaper


def test_gates_are_priced_alone_and_needed_from_one_half_on() -> None:
    state = _state()
    table = state.model.groups
    model = pb.BayesianModel(state.model.net, SpikeSlab(0.1, slab="gl"), data_size=100, groups=table)
    guide = SpikeSlabGuide(model)
    state = FitState(model, guide, step=20)
    event = PricedKL({"macs": 0.5}, _cost(state), rate=0.1, floor=0.0, site="gate")
    assert event.on_start(state).kl_weights.keys() == {"0.gate", "2.gate"}
    before = event.on_batch_end(state).kl_weights
    assert event.multiplier == pytest.approx(1.1)
    with torch.no_grad():  # half of the first group: 11/22 of the MACs, and the price of the second goes with it
        guide.theta["0|gate"].copy_(torch.tensor([-0.1, 0.1, -5.0, 5.0]))
    after = event.on_batch_end(state).kl_weights
    ratio = {site: after[site] / before[site] for site in before}
    assert ratio["2.gate"] < ratio["0.gate"]
    with torch.no_grad():
        guide.theta["0|gate"].fill_(-5.0)  # at least one channel counts as needed
    masks = event._needed(state)
    assert masks["0"].sum() == 1 and masks["2"].sum() == 6


def test_state_and_bad_settings() -> None:
    state = _state()
    event = PricedKL({"params": 0.5}, _cost(state))
    event.on_start(state)
    last = event.on_batch_end(state).kl_weights
    other = PricedKL({"params": 0.5}, _cost(state))
    other.load_state_dict(event.state_dict())
    assert other.multiplier == event.multiplier != 1.0
    with torch.no_grad():  # what is needed has changed since: a resumed fit goes on with the weights it had
        state.guide.log_scale["0|noise"][1:] = 3.0
    assert other.on_start(replace(state, step=27)).kl_weights == last
    assert other.on_start(replace(state, step=0)).kl_weights != last  # a new fit reads its own
    with pytest.raises(ConfigError, match="goal"):
        PricedKL({}, (1.0, 1.0))
