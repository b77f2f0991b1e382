"""Milliseconds as a cost of the planner: the interpolated table against hand-made sums, plans against trying all."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import nn

import pyrobnn as pb
from pyrobnn.channels.parts import COSTS
from pyrobnn.channels.planner import Budget, Limits
from pyrobnn.channels.table import ChannelTable
from pyrobnn.channels.times import SLOPE, LayerTimes
from pyrobnn.errors import ConfigError, PlanError
from pyrobnn.pipeline.config import BUDGETS


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def row(sizes: list[int], others: list[int], values: list[list[float]]) -> tuple[torch.Tensor, ...]:
    return torch.tensor(sizes), torch.tensor(others), torch.tensor(values)


def times() -> LayerTimes:
    """The second convolution is slow above two channels on either side; the third layer takes its time whatever its width."""
    return LayerTimes.of(
        {
            "0.weight": [row([1, 2, 4], [1], [[1.0], [1.5], [4.0]])],
            "2.weight": [row([1, 3, 5], [1, 2, 4], [[1.0, 2.0, 3.0], [2.0, 4.0, 9.0], [3.0, 8.0, 20.0]])],
            "5.weight": [row([1, 6], [80], [[0.5], [0.5]]), row([1, 6], [80], [[0.1], [0.6]])],
        },
        fixed=2.0,
    )


@pytest.fixture(scope="module")
def table() -> ChannelTable:
    return pb.channel_groups(net(), torch.zeros(2, 1, 8, 8)).timed(times())


def by_hand(a: int, b: int, c: int) -> float:
    """The same time from SciPy's interpolation, without the slope that keeps prices above 0."""
    grids = [
        RegularGridInterpolator(([1, 3, 5], [1, 2, 4]), [[1, 2, 3], [2, 4, 9], [3, 8, 20]])([[b, a]])[0],
        {1: 1.0, 2: 1.5, 3: 2.75, 4: 4.0}[a],
        0.5,
        0.1 * c,
    ]
    return float(sum(grids)) + 2.0


def masks(*kept: int) -> dict[str, torch.Tensor]:
    return {name: torch.arange(n) < k for (name, n), k in zip({"0": 4, "2": 5, "5": 6}.items(), kept, strict=True)}


def test_between_measured_widths_times_are_bilinear(table: ChannelTable) -> None:
    for kept in itertools.product((1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 3, 6)):
        assert table.cost(masks(*kept)).latency == pytest.approx(by_hand(*kept), abs=SLOPE * 50)
    assert isinstance(table.cost(None).latency, float) and table.cost(None).macs == 36 * 36 + 180 * 16 + 480 + 18


def test_a_cut_table_prices_what_is_left(table: ChannelTable) -> None:
    keep = masks(3, 4, 2)
    plan = pb.PruningPlan({n: m.nonzero().flatten().tolist() for n, m in keep.items()}, table.widths())
    after = table.after(plan)
    assert after.cost(None).latency == pytest.approx(table.cost(keep).latency)
    fewer = table.cost(masks(2, 4, 2)).latency
    assert after["0"].cost.latency == pytest.approx(table.cost(keep).latency - fewer)


def test_noise_does_not_make_a_wider_layer_faster() -> None:
    noisy = LayerTimes.of({"w": [row([1, 2, 3], [1, 2], [[1.0, 0.5], [0.7, 2.0], [0.9, 1.9]])]}, 0.0)
    table = noisy.milliseconds[0, :, :2]  # the third column only fills up
    assert bool((table.diff(dim=0) > 0).all()) and bool((table.diff(dim=1) > 0).all())
    assert noisy.milliseconds[0, 2, 1] == pytest.approx(2.0, rel=3 * SLOPE)


def test_it_comes_back_from_a_file() -> None:
    again, empty = LayerTimes.from_data(times().data()), LayerTimes.from_data(LayerTimes.of({}, 1.5).data())
    sizes = torch.tensor([[3.0, 1], [2, 2], [4, 80], [4, 80]], dtype=torch.float64)
    assert torch.equal(again(sizes), times()(sizes)) and again.data() == times().data()
    assert float(empty(torch.zeros(0, 2))) == 1.5


def test_prices_are_what_a_unit_less_saves(table: ChannelTable) -> None:
    budget = Budget(table, {"latency": 0.3})
    kept = {name: mask.double() for name, mask in masks(4, 5, 6).items()}
    prices = budget.unit_prices(kept)
    whole = table.cost(None).latency
    for name, width in table.widths().items():
        step = {**kept, name: kept[name] - 1e-4 / width}  # a soft keep, below the last measured width
        saved = (whole - float(table.cost(step).latency)) / whole
        assert prices[name] == pytest.approx(saved / 1e-4, rel=1e-6)


@pytest.mark.parametrize("target", [0.3, 0.45, 0.7, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_plans_against_trying_all(target: float, seed: int, table: ChannelTable) -> None:
    """No plan of the same order that holds the target keeps one unit more, and few keep more nats."""
    torch.manual_seed(seed)
    nats = {g.name: torch.rand(g.channels) + 0.05 for g in table}
    found = pb.plan_for_budget(nats, table, target_latency=target)
    widths = tuple(found.widths().values())
    whole, lost = table.cost(None).latency, {}
    ordered = [nats[name].sort().values for name in ("0", "2", "5")]
    for kept in itertools.product(range(1, 5), range(1, 6), range(1, 7)):
        if table.cost(masks(*kept)).latency <= target * whole + 1e-9:
            lost[kept] = sum(
                float(v.sum() * (v.sum() / v[len(v) - k :].sum()).log()) for v, k in zip(ordered, kept, strict=True)
            )
    assert widths in lost
    for at in range(3):
        assert tuple(w + (i == at) for i, w in enumerate(widths)) not in lost
    assert lost[widths] <= min(lost.values()) + 1.0  # greedy is not exact; a unit is worth half a nat


def test_milliseconds_and_macs_want_different_cuts(table: ChannelTable) -> None:
    """The first convolution is a fifth of the MACs and most of what the second one waits for."""
    nats = {g.name: torch.ones(g.channels) for g in table}
    by_time, by_macs = (
        pb.plan_for_budget(nats, table, **{f"target_{cost}": 0.5}).widths() for cost in ("latency", "macs")
    )
    assert by_time != by_macs
    both = pb.plan_for_budget(nats, table, target_latency=0.5, target_macs=0.5)
    left = table.cost(
        {n: torch.zeros(both.channels[n]).index_fill(0, torch.tensor(k), 1.0).bool() for n, k in both.keep.items()}
    )
    assert left.latency <= 0.5 * table.cost(None).latency and left.macs <= 0.5 * table.cost(None).macs


def test_what_cannot_be_is_said(table: ChannelTable) -> None:
    nats = {g.name: torch.ones(g.channels) for g in table}
    with pytest.raises(PlanError, match=r"latency <= 0.05 cannot be met: .* % of latency are left"):
        pb.plan_for_budget(nats, table, target_latency=0.05)
    with pytest.raises(ConfigError, match=r"pb\.time_layers"):
        pb.plan_for_budget(nats, table.timed(None), target_latency=0.5)
    with pytest.raises(ConfigError, match="target_latency is the share"):
        pb.plan_for_budget(nats, table, target_latency=1.5)
    rounded = pb.plan_for_budget(nats, table, target_latency=0.6, limits=Limits(round_to=2))
    assert all(w % 2 == 0 or w == table.widths()[n] for n, w in rounded.widths().items())


def test_the_options_name_the_same_costs() -> None:
    assert BUDGETS == COSTS
