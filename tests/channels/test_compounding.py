"""What several channels of a group cost together, from what each costs alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.channels.compounding import compounded


def test_costs_add_up_to_the_log_of_what_is_left() -> None:
    losses = torch.tensor([3.0, 1.0, 0.5, 5.5])
    cost = compounded(losses)
    order = losses.argsort()
    for gone in range(1, 4):
        left = float(losses[order[gone:]].sum()) / 10.0
        assert float(cost[order[:gone]].sum()) == pytest.approx(-10.0 * math.log(left), rel=1e-5)
    assert bool((cost[order].diff() > 0).all())
    # In other units; and in two rounds, counted as a share of the group (but for the last channel, which depends on
    # who is there).
    torch.testing.assert_close(compounded(100 * losses), 100 * cost)
    later = losses[order[1:]]
    torch.testing.assert_close(compounded(later)[:-1] / later.sum(), cost[order[1:-1]] / losses.sum())


def test_first_channels_cost_what_they_cost_alone() -> None:
    """To the share that is gone: what goes next after R of the sum S costs s / (1 − R)."""
    losses = torch.linspace(0.9, 1.1, 1000, dtype=torch.float64)
    cost = compounded(losses)
    gone = losses.cumsum(0) / losses.sum()
    torch.testing.assert_close(cost[:900], losses[:900] / (1 - gone[:900]), rtol=1e-2, atol=0.0)
    assert float(cost[0]) == pytest.approx(0.9, rel=1e-3)


def test_the_last_channel_costs_what_it_is_of_its_group() -> None:
    """Not one constant for all groups: the more a channel is above the average, the more is lost with it."""
    alike, lone = compounded(torch.ones(6) / 6), compounded(torch.tensor([0.01] * 5 + [5.0]) / 5.05)
    assert float(alike[-1]) == pytest.approx(math.log(1 / 1e-3), rel=1e-5)
    assert float(lone[-1]) == pytest.approx(math.log(5.0 / (1e-3 * 5.05 / 6)), rel=1e-5)
    assert float(lone[-1]) > float(alike[-1])
    # Whatever the losses are, no channel costs less than a smaller one, and the last one most.
    cost = compounded(torch.tensor([1.0, 1e-12, 1e-6, 1e-6]))
    assert bool((cost.sort().values[:-1] <= cost[0]).all()) and int(cost.argmax()) == 0


@pytest.mark.parametrize(
    "losses", [[2.0], [0.0], [1e-30, 1.0], [], [0.0, 0.0, 0.0], [math.inf, 1.0, 1.0], [-1.0, 2.0, 1.0]]
)
def test_any_losses_can_be_compounded(losses: list[float]) -> None:
    cost = compounded(torch.tensor(losses))
    assert cost.shape == (len(losses),) and bool(torch.isfinite(cost).all()) and bool((cost >= 0).all())
    for value, found in zip(losses, cost.tolist(), strict=True):
        assert (found == 0.0) == (value <= 0.0)
    assert cost.argsort(stable=True).tolist() == torch.tensor(losses).argsort(stable=True).tolist()


def test_equal_shares_keep_layers_in_proportion() -> None:
    """A budget must not empty one layer while its neighbour stays whole."""
    net = pb.nets.build("lenet5", in_channels=1, image_size=28)
    table = pb.channel_groups(net, torch.randn(2, 1, 28, 28))
    shares = {group.name: torch.full((group.channels,), 1 / group.channels) for group in table}
    plan = pb.plan_for_budget(shares, table, target_macs=0.25)
    assert 0.3 < len(plan.keep["conv1"]) / 20 < 0.6 and 0.25 < len(plan.keep["conv2"]) / 50 < 0.6


@pytest.mark.parametrize("target", [0.7, 0.4, 0.15])
def test_small_losses_of_a_wide_layer_do_not_empty_it(target: float) -> None:
    """96 channels that are hardly missed one by one. What is lost in all is near the least of all pairs of widths."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 96, 3), nn.ReLU(), nn.Conv2d(96, 8, 3))
    table = pb.channel_groups(net, torch.randn(1, 3, 8, 8))
    losses = {"0": torch.full((8,), 30.0), "2": torch.full((96,), 0.5)}

    def lost(widths: tuple[int, int]) -> float:
        totals = (240 * -math.log(widths[0] / 8), 48 * -math.log(widths[1] / 96))
        return sum(totals)

    def macs(widths: tuple[int, int]) -> int:
        a, b = widths
        return 36 * 27 * a + 16 * 9 * a * b + 4 * 9 * b * 8

    allowed = [w for w in itertools.product(range(1, 9), range(1, 97)) if macs(w) <= target * macs((8, 96))]
    best = min(map(lost, allowed))
    widths = pb.plan_for_budget(losses, table, target_macs=target).widths()
    found = widths["0"], widths["2"]
    assert found in allowed and best <= lost(found) <= 1.1 * best + 1
