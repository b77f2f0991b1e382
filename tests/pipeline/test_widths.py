"""Widths planned once: where the rounds go, and what is kept of every group."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.methods.controls import L1
from pyrobnn.pipeline import widths as widths_module
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.state import State
from pyrobnn.pipeline.widths import evenly, planned

SETTINGS: dict[str, Any] = {"precision": "fp32", "progress": False, "seed": 1}
METHOD = replace(
    L1, name="l1, planned", pipeline=planned, recipes=L1.recipes.with_values({"infer_share": 0.5, "rounds": 3})
)


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(200), valid=full.valid.take(60), test=full.test.take(60))


def test_rounds_go_geometrically_to_the_planned_widths(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[dict[str, torch.Tensor], Any]] = []
    original = widths_module._choose

    def choose(context: Context, state: State, number: int, *, rounds: int) -> pb.PruningPlan:
        assert state.latest is not None
        chosen = original(context, state, number, rounds=rounds)
        seen.append((state.latest.costs(), chosen))
        return chosen

    monkeypatch.setattr(widths_module, "_choose", choose)
    result = pb.compress("small_cnn", data, METHOD, target_macs=0.2, epochs=8, **SETTINGS)
    rounds = [entry["widths"] for entry in result.report["rounds"]]
    dense, final = result.report["dense"]["widths"], rounds[-1]
    assert len(rounds) == 3
    for number, widths in enumerate(rounds):
        for name, width in widths.items():
            assert abs(width - dense[name] * (final[name] / dense[name]) ** ((number + 1) / 3)) <= 0.5 + 1e-9
    macs = result.report["compact"]["macs"] / result.report["dense"]["macs"]
    assert 0.2 - 0.02 - 0.06 < macs <= 0.2  # a unit of this net is up to 6 %
    for nats, plan in seen:
        for name, units in plan.keep.items():
            lost = [k for k in range(len(nats[name])) if k not in units]
            assert not lost or float(nats[name][lost].max()) <= float(nats[name][units].min())


def test_limits_hold_on_the_way(data: Data) -> None:
    result = pb.compress("small_cnn", data, METHOD, target_macs=0.4, epochs=6, min_channels=6, round_to=4, **SETTINGS)
    for entry in result.report["rounds"]:
        assert all(width % 4 == 0 and width >= 8 for width in entry["widths"].values())
    assert result.report["compact"]["macs"] <= 0.4 * result.report["dense"]["macs"]


def test_units_of_different_cost_still_meet_the_budget(data: Data) -> None:
    """When the planned widths turn out too large, the last round plans again."""
    method = replace(
        METHOD, pipeline=partial(planned, widths=lambda context, state: pb.PruningPlan.full(context.table))
    )
    result = pb.compress("small_cnn", data, method, target_macs=0.4, epochs=6, **SETTINGS)
    assert result.report["compact"]["macs"] <= 0.4 * result.report["dense"]["macs"]


@pytest.mark.parametrize("targets", [{"target_macs": 0.3}, {"target_macs": 0.5, "target_params": 0.2}])
def test_even_widths_are_the_largest_common_share(data: Data, targets: dict[str, float]) -> None:
    """Against every share at which a width changes."""
    method = replace(METHOD, pipeline=partial(planned, widths=evenly))
    result = pb.compress("small_cnn", data, method, epochs=6, **targets, **SETTINGS)
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    table = pb.channel_groups(net, torch.zeros(2, 1, 8, 8))
    dense = table.widths()
    whole = table.cost(None)
    best: dict[str, int] = {}
    for share in sorted({k / n for n in dense.values() for k in range(1, n + 1)}):
        widths = {name: math.ceil(share * n - 1e-9) for name, n in dense.items()}
        masks = {name: (torch.arange(n) < widths[name]).double() for name, n in dense.items()}
        cost = table.cost(masks)
        left = {"target_macs": float(cost.macs / whole.macs), "target_params": float(cost.params / whole.params)}
        if all(left[kind] <= value for kind, value in targets.items()):
            best = widths
    assert result.report["compact"]["widths"] == best


def test_even_widths_say_what_no_budget_can_reach(data: Data) -> None:
    method = replace(METHOD, pipeline=partial(planned, widths=evenly))
    with pytest.raises(pb.PlanError, match="cannot be met"):
        pb.compress("small_cnn", data, method, epochs=6, target_macs=0.01, min_channels=8, **SETTINGS)
