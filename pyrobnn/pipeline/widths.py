"""Widths that are planned once for the whole budget and then approached round by round."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from pyrobnn.channels import PruningPlan
from pyrobnn.channels.planner import Limits, plan_for_budget
from pyrobnn.pipeline.run import Run
from pyrobnn.summary.state import from_state


def planned_road(run: Run, widths: Callable[[Run], PruningPlan] | None = None) -> None:
    """The common road to a budget, but for how it is shared between the layers.

    The first round plans the widths of the last one; every round then cuts all layers by the
    same part of the way (geometrically), choosing which channels by its own scores. A budget that is
    shared anew in every round depends on its own earlier cuts: what was cut once cannot come back, and
    small layers end with one or two channels while wide ones stay (tried on LeNet-5).

    Args:
        run: to do.
        widths: how the first round plans, :func:`by_scores` (the default) or :func:`evenly`.
    """
    run.start()
    rounds = len(run.epochs.infer)
    for number in range(rounds):
        run.infer(number)
        if number == 0:
            run.journal.step("widths", lambda carry: {"final_widths": (widths or by_scores)(run).widths()})
        run.cut(number, partial(_choose, run, number, rounds))
    run.tune("tune", run.epochs.tune)


def _nats(run: Run) -> dict[str, torch.Tensor]:
    return from_state(run.carry["latest"]).costs()


def by_scores(run: Run) -> PruningPlan:
    """The least of what the scores say is lost, per cost saved, until the budget holds."""
    request = run.request
    return plan_for_budget(
        _nats(run),
        run.current_table(),
        target_macs=request.target_macs,
        target_params=request.target_params,
        limits=Limits(request.min_channels, request.round_to),
        dense=run.dense_cost,
    )


def evenly(run: Run) -> PruningPlan:
    """The same share of every group, the largest that the budget allows; the units with the highest scores.

    The cost falls with the share, so bisection finds it.

    Raises:
        PlanError: a budget below what `min_channels` leaves.
    """
    limits, nats = Limits(run.request.min_channels, run.request.round_to), _nats(run)

    def at(share: float) -> PruningPlan:
        keep = {}
        for name, values in nats.items():
            count = limits.allowed(len(values), math.ceil(share * len(values)))
            keep[name] = torch.argsort(values, descending=True, stable=True)[:count].tolist()
        return PruningPlan(keep, {name: len(values) for name, values in nats.items()})

    low, high = 0.0, 1.0
    if not _meets(run, at(low)):
        return by_scores(run)  # says what is left
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _meets(run, at(middle)) else (low, middle)
    return at(low)


def _meets(run: Run, plan: PruningPlan) -> bool:
    """Whether a plan of the current network keeps to the budget."""
    left = run.left(run.plan.compose(plan))
    targets = {"macs": run.request.target_macs, "params": run.request.target_params}
    return all(left[kind] <= value + 1e-12 for kind, value in targets.items() if value is not None)


def _choose(run: Run, number: int, rounds: int) -> PruningPlan:
    """The best channels of every group, as many as this round's widths say; the last round meets the budget."""
    limits, final = Limits(run.request.min_channels, run.request.round_to), run.carry["final_widths"]
    keep: dict[str, list[int]] = {}
    score: dict[str, list[float] | None] = {}
    channels: dict[str, int] = {}
    for name, nats in _nats(run).items():
        dense = run.table[name].channels
        wanted = round(dense * (final[name] / dense) ** ((number + 1) / rounds))
        count = limits.allowed(len(nats), max(wanted, final[name]))
        keep[name] = sorted(torch.argsort(nats, descending=True, stable=True)[:count].tolist())
        score[name], channels[name] = nats.tolist(), len(nats)
    reason = dict.fromkeys(keep, f"widths planned for the budget, round {number + 1} of {rounds}")
    chosen = PruningPlan(keep=keep, channels=channels, score=score, reason=reason)
    if number + 1 < rounds:
        return chosen
    # Where units of one group differ in cost, equal widths need not meet the budget.
    return chosen if _meets(run, chosen) else by_scores(run)
