"""Widths that are planned once for the whole budget and reached over several rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from pyrobnn.channels import PruningPlan
from pyrobnn.channels.planner import as_targets, plan_for_budget
from pyrobnn.pipeline.choices import costs_of
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.stages import Stage, cut, infer, train_dense, tune
from pyrobnn.pipeline.state import State

Widths = Callable[[Context, State], PruningPlan]


def planned(context: Context, widths: Widths | None = None) -> list[Stage]:
    """The common pipeline to a budget, but for how it is shared between the layers.

    The first round plans the widths of the last one; every round then cuts all layers by the
    same part of the way (geometrically), choosing which channels by its own scores. A budget that is
    shared anew in every round depends on its own earlier cuts: what was cut once cannot come back, and
    small layers end with one or two channels while wide ones stay (tried on LeNet-5).

    Args:
        context: of the run.
        widths: how the first round plans, :func:`by_scores` (the default) or :func:`evenly`.
    """
    rounds = len(context.epochs.infer)
    stages = [train_dense()]
    for number in range(rounds):
        stages.append(infer(number))
        if number == 0:
            stages.append(plan_widths(widths or by_scores))
        stages.append(cut(number, partial(_choose, rounds=rounds)))
    return [*stages, tune(context.epochs.tune)]


def plan_widths(widths: Widths) -> Stage:
    """Remember the widths of the last round."""
    return Stage("widths", lambda context, state: state.with_extras(widths=widths(context, state).widths()), 0)


def by_scores(context: Context, state: State) -> PruningPlan:
    """The least of what the scores say is lost, per cost saved, until the budget holds."""
    return plan_for_budget(
        costs_of(state),
        context.table_of(state.plan),
        **as_targets(context.config.budget),
        limits=context.limits,
        dense=context.dense_cost,
    )


def evenly(context: Context, state: State) -> PruningPlan:
    """The same share of every group, the largest that the budget allows; the units with the highest scores.

    The cost falls with the share, so bisection finds it.

    Raises:
        PlanError: a budget below what `min_channels` leaves.
    """
    limits, nats = context.limits, costs_of(state)

    def at(share: float) -> PruningPlan:
        keep = {}
        for name, values in nats.items():
            count = limits.allowed(len(values), math.ceil(share * len(values)))
            keep[name] = torch.argsort(values, descending=True, stable=True)[:count].tolist()
        return PruningPlan(keep, {name: len(values) for name, values in nats.items()})

    low, high = 0.0, 1.0
    if not _meets(context, state, at(low)):
        return by_scores(context, state)  # says what is left
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _meets(context, state, at(middle)) else (low, middle)
    return at(low)


def _meets(context: Context, state: State, plan: PruningPlan) -> bool:
    """Whether a plan of the current network keeps to the budget."""
    left = context.left(state.plan.compose(plan))
    return all(left[cost] <= share + 1e-12 for cost, share in context.config.budget.items())


def _choose(context: Context, state: State, number: int, *, rounds: int) -> PruningPlan:
    """The best channels of every group, as many as this round's widths say; the last round meets the budget."""
    limits, final = context.limits, state.extras["widths"]
    keep: dict[str, list[int]] = {}
    score: dict[str, list[float] | None] = {}
    channels: dict[str, int] = {}
    for name, nats in costs_of(state).items():
        dense = context.table[name].channels
        wanted = round(dense * (final[name] / dense) ** ((number + 1) / rounds))
        count = limits.allowed(len(nats), max(wanted, final[name]))
        keep[name] = sorted(torch.argsort(nats, descending=True, stable=True)[:count].tolist())
        score[name], channels[name] = nats.tolist(), len(nats)
    reason = dict.fromkeys(keep, f"widths planned for the budget, round {number + 1} of {rounds}")
    chosen = PruningPlan(keep=keep, channels=channels, score=score, reason=reason)
    if number + 1 < rounds:
        return chosen
    # Where units of one group differ in cost, equal widths need not meet the budget.
    return chosen if _meets(context, state, chosen) else by_scores(context, state)
