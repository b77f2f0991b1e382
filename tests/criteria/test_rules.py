"""From posterior to plan: fixed rules and budgets, checked by counting."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels import ChannelTable
from pyrobnn.channels.planner import Limits, plan_for_budget
from pyrobnn.criteria.rules import plan
from pyrobnn.errors import ConfigError, NumericalError, PlanError
from pyrobnn.summary.types import ChannelSummary, Posterior


def channel(name: str, values: list[float], statistic: str = "snr", evidence: Tensor | None = None) -> ChannelSummary:
    snr = torch.tensor(values)
    kept = torch.ones(len(values), dtype=torch.bool)
    return ChannelSummary(name, snr, 0.5 * snr.square(), statistic, kept, evidence=evidence)


def posterior(**channels: ChannelSummary) -> Posterior:
    return Posterior({}, channels)


# Fixed rules


def test_snr_rule_keeps_what_reaches_the_line() -> None:
    found = plan(posterior(a=channel("a", [0.2, 1.0, 3.0, 0.99]), b=channel("b", [5.0, 4.0])))
    assert found.keep == {"a": [1, 2], "b": [0, 1]} and found.channels == {"a": 4, "b": 2}
    assert found.score["a"] == pytest.approx([0.2, 1.0, 3.0, 0.99])
    assert plan(posterior(a=channel("a", [0.2, 1.0, 3.0])), threshold=2.0).keep == {"a": [2]}


def test_a_group_never_loses_everything() -> None:
    dead = posterior(a=channel("a", [0.1, 0.3, 0.2, 0.0]))
    assert plan(dead).keep == {"a": [1]}
    assert plan(dead, min_channels=3).keep == {"a": [0, 1, 2]}
    assert plan(dead, min_channels=99).keep == {"a": [0, 1, 2, 3]}
    assert plan(dead, max_cut=0.5).keep == {"a": [1, 2]}


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 8])
def test_round_to(multiple: int) -> None:
    values = torch.rand(10).tolist()
    for line in (0.0, 0.3, 0.6, 0.9, 2.0):
        kept = plan(posterior(a=channel("a", values)), threshold=line, round_to=multiple).keep["a"]
        wanted = sum(v >= line for v in values)
        assert len(kept) % multiple == 0 or len(kept) == 10
        assert len(kept) >= wanted and len(kept) - max(wanted, 1) < multiple
        assert set(kept) == set(sorted(range(10), key=lambda k: -values[k])[: len(kept)])
    narrow = plan(posterior(a=channel("a", [0.1, 2.0, 0.2])), round_to=8)
    assert narrow.keep["a"] == [1]  # narrower than the multiple: no rounding


def test_each_statistic_has_its_own_line() -> None:
    inclusion = channel("a", [0.4, 0.6], "inclusion")
    assert plan(posterior(a=inclusion)).keep == {"a": [1]}
    assert plan(posterior(a=inclusion), rule="inclusion", threshold=0.7).keep == {"a": [1]}
    point = channel("a", [0.001, 10.0, 12.0], "magnitude")
    assert plan(posterior(a=point)).keep == {"a": [1, 2]}
    evidence = channel("a", [9.0, 9.0, 9.0], evidence=torch.tensor([-0.5, 0.5, 0.0]))
    assert plan(posterior(a=evidence), rule="bmr").keep == {"a": [1, 2]}
    assert plan(posterior(a=evidence), rule="bmr", threshold=0.4).keep == {"a": [1]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "snrr"}, "unknown rule 'snrr'.*snr"),
        ({"rule": "inclusion"}, "no inclusion probability"),
        ({"target_macs": 0.5}, "groups="),
        ({"min_channels": 0}, "min_channels must be a whole number of at least 1, got 0"),
        ({"round_to": 0}, "round_to must be a whole number of at least 1, got 0"),
        ({"max_cut": 0.0}, "max_cut"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(posterior(a=channel("a", [1.0, 2.0])), **options)


def test_evidence_needs_a_prior_or_nats() -> None:
    shares = replace(channel("a", [1.0, 2.0]), unit="share")
    with pytest.raises(ConfigError, match="no Gaussian prior and guide, and no loss in nats"):
        plan(posterior(a=shares), "bmr")
    assert plan(posterior(a=channel("a", [0.5, 9.0])), "bmr").keep == {"a": [1]}


# Budgets


class Wide(nn.Module):
    """Two stages with a residual, a concat and a grouped head: several kinds of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.mid = nn.Conv2d(12, 20, 3, padding=1)
        self.back = nn.Conv2d(20, 12, 1)
        self.side = nn.Conv2d(12, 6, 3, padding=1)
        self.head = nn.Linear(18 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.back(torch.relu(self.mid(x))))
        x = torch.cat([x, torch.relu(self.side(x))], 1)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


@pytest.fixture(scope="module")
def table() -> ChannelTable:
    torch.manual_seed(0)
    return pb.channel_groups(Wide(), torch.randn(2, 3, 8, 8))


def masks_of(found: pb.PruningPlan) -> dict[str, Tensor]:
    masks = {}
    for name, units in found.keep.items():
        masks[name] = torch.zeros(found.channels[name], dtype=torch.float64)
        masks[name][units] = 1.0
    return masks


def shares(table: ChannelTable, masks: dict[str, Tensor]) -> dict[str, float]:
    now, full = table.cost(masks), table.cost(None)
    return {"macs": float(now.macs) / float(full.macs), "params": float(now.params) / float(full.params)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "targets",
    [{"macs": 0.7}, {"macs": 0.3}, {"macs": 0.1}, {"params": 0.5}, {"params": 0.2}, {"macs": 0.4, "params": 0.3}],
)
def test_budget_is_hit(seed: int, targets: dict[str, float], table: ChannelTable) -> None:
    """left ≤ R; and R − left ≤ 0.02, or one more unit anywhere would exceed R."""
    torch.manual_seed(seed)
    nats = {g.name: torch.rand(g.channels) * 10 ** float(torch.randn(())) for g in table}
    found = plan_for_budget(nats, table, **{f"target_{k}": v for k, v in targets.items()})
    masks = masks_of(found)
    left = shares(table, masks)
    assert all(left[k] <= v + 1e-9 for k, v in targets.items())
    for group in table:
        for unit in (masks[group.name] == 0).nonzero().flatten().tolist():
            more = {**masks, group.name: masks[group.name].index_fill(0, torch.tensor([unit]), 1.0)}
            after = shares(table, more)
            assert any(after[k] > v for k, v in targets.items()), f"{group.name}[{unit}] would still fit"
    for name, units in found.keep.items():  # within a group the least valuable go first
        gone = set(range(found.channels[name])) - set(units)
        if gone:
            assert float(nats[name][list(gone)].max()) <= float(nats[name][units].min())


def test_cheap_and_valuable_units_stay(table: ChannelTable) -> None:
    """With one group without value the cut falls there alone, as far as it reaches."""
    nats = {g.name: torch.full((g.channels,), 100.0) + torch.rand(g.channels) for g in table}
    nats["mid"] = torch.rand(20) * 1e-3
    found = plan_for_budget(nats, table, target_macs=0.8)
    assert len(found.keep["mid"]) < 20
    assert all(len(found.keep[g.name]) == g.channels for g in table if g.name != "mid")


def test_greedy_is_near_the_best_of_all_widths() -> None:
    """Small enough to enumerate: value lost is at most a little above the optimum."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    )
    table = pb.channel_groups(net, torch.randn(2, 1, 4, 4))
    for seed in range(5):
        torch.manual_seed(seed)
        nats = {g.name: torch.rand(6).sort(descending=True).values for g in table}
        total = sum(float(v.sum()) for v in nats.values())

        def lost(name: str, kept: int, nats: dict[str, Tensor] = nats) -> float:  # −S log of the share that is left
            return float(nats[name].sum() * (nats[name].sum() / nats[name][:kept].sum()).log())

        best = min(
            lost("0", a) + lost("2", b)
            for a, b in itertools.product(range(1, 7), repeat=2)
            if shares(table, {n: (torch.arange(6) < k).double() for n, k in (("0", a), ("2", b))})["macs"] <= 0.5
        )
        found = plan_for_budget(nats, table, target_macs=0.5)
        ours = sum(lost(name, len(units)) for name, units in found.keep.items())
        assert best - 1e-6 <= ours <= best + 0.15 * total


@pytest.mark.parametrize("round_to", [2, 4])
def test_limits_hold_under_a_budget(round_to: int, table: ChannelTable) -> None:
    nats = {g.name: torch.rand(g.channels) for g in table}
    found = plan_for_budget(nats, table, target_macs=0.4, limits=Limits(min_channels=3, round_to=round_to))
    for name, units in found.keep.items():
        assert len(units) >= 3 and (len(units) % round_to == 0 or len(units) == found.channels[name])
    assert shares(table, masks_of(found))["macs"] <= 0.4


def test_dense_figures_to_refer_to(table: ChannelTable) -> None:
    """A later round counts against the original net, not against what is left."""
    full = table.cost(None)
    nats = {g.name: torch.rand(g.channels) for g in table}
    half = plan_for_budget(nats, table, target_macs=0.5)
    small = table.after(half)
    later = {name: nats[name][units] for name, units in half.keep.items()}
    again = plan_for_budget(later, small, target_macs=0.3, dense=(float(full.params), float(full.macs)))
    both = half.compose(again)
    left = shares(table, masks_of(both))["macs"]
    assert left <= 0.3 and left > 0.24


@pytest.mark.parametrize("target", [0.0, 1.0, -0.2, 1.7])
def test_targets_are_shares(target: float, table: ChannelTable) -> None:
    nats = {g.name: torch.rand(g.channels) for g in table}
    with pytest.raises(ConfigError, match=r"\(0, 1\)"):
        plan_for_budget(nats, table, target_macs=target)
    with pytest.raises(ConfigError, match="target_macs, target_params or target_latency"):
        plan_for_budget(nats, table)


def test_a_budget_out_of_reach_says_what_is_left(table: ChannelTable) -> None:
    nats = {g.name: torch.rand(g.channels) for g in table}
    with pytest.raises(PlanError, match=r"cannot be met.*% of macs.*raise the target"):
        plan_for_budget(nats, table, target_macs=1e-5)
    with pytest.raises(PlanError, match="with min_channels=11, .* are left"):
        plan_for_budget(nats, table, target_macs=0.2, limits=Limits(min_channels=11))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": nn.Linear(1, 1)}, r"expected a Posterior \(from pb.summarize\), or None, got Linear"),
        ({"posterior": Posterior({}, {})}, r"no scores of channels to plan by.*groups="),
        ({"groups": []}, "the table that pb.channel_groups.* returns, got list"),
        ({"threshold": "a"}, "threshold must be a number, got 'a'"),
        ({"threshold": float("nan")}, "threshold must be a number, got nan"),
        ({"min_channels": 2.5}, "min_channels must be a whole number of at least 1, got 2.5"),
        ({"round_to": 0}, "round_to must be a whole number of at least 1, got 0"),
        ({"max_cut": "all"}, r"max_cut must be in \(0, 1\], got 'all'"),
        ({"target_macs": "0.5"}, r"target_macs is the share.*got '0.5'"),
        ({"posterior": None, "rule": "l1"}, "needs the table, and there is none here: give groups="),
    ],
)
def test_what_cannot_be_planned_by_is_refused(options: dict[str, Any], message: str, table: ChannelTable) -> None:
    given = {"posterior": posterior(**{g.name: channel(g.name, [1.0] * g.channels) for g in table}), **options}
    if "target_macs" in options:
        given["groups"] = table
    with pytest.raises(ConfigError, match=message):
        plan(**given)


@pytest.mark.parametrize("budget", [{}, {"target_macs": 0.5}])
def test_scores_that_are_nan_are_named(budget: dict[str, float], table: ChannelTable) -> None:
    channels = {g.name: channel(g.name, [1.0] * g.channels) for g in table}
    name = table.names[1]
    channels[name].snr[3] = channels[name].nats[3] = torch.nan
    with pytest.raises(NumericalError, match=f"unit 3 of group '{name}' is NaN"):
        plan(posterior(**channels), groups=table, **budget)


def test_scores_of_another_network_are_refused(table: ChannelTable) -> None:
    scores = {g.name: torch.ones(g.channels) for g in table}
    with pytest.raises(PlanError, match="9 scores of group 'other' .* no such group"):
        plan_for_budget({**scores, "other": torch.ones(9)}, table, target_macs=0.5)
    name = table.names[0]
    with pytest.raises(PlanError, match=f"99 scores of group '{name}' do not fit"):
        plan_for_budget({**scores, name: torch.ones(99)}, table, target_macs=0.5)


def test_the_limit_that_binds_is_named(table: ChannelTable) -> None:
    with pytest.raises(PlanError, match=r"with min_channels=1, max_cut=0.1, .* a larger max_cut"):
        plan_for_budget(
            {g.name: torch.ones(g.channels) for g in table}, table, target_macs=0.5, limits=Limits(max_cut=0.1)
        )
