"""The plan of a round: by a budget, within a drop, or by the method's rule."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pyrobnn.channels import PruningPlan
from pyrobnn.channels.planner import as_targets, plan_for_budget
from pyrobnn.channels.search import largest_cut
from pyrobnn.criteria.rules import plan
from pyrobnn.errors import PlanError
from pyrobnn.pipeline.acceptance import worth_trying
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.state import State

LARGEST_CUT = 0.35  # share of the current MACs and parameters that one round leaves at the least
THINNEST = 1 / 32  # share of a group that all rounds together leave at the least, unless the budget asks for more


def costs_of(state: State) -> dict[str, Tensor]:
    """What is lost if a channel goes, `{group: [channels]}`, as the last fit says."""
    assert state.latest is not None
    return state.latest.costs()


def choose(context: Context, state: State, number: int) -> PruningPlan:
    """The plan of one round, in the coordinates of the current network.

    With a budget every round cuts to a geometric step of it. With `--max-drop` each round cuts as deep as validation
    accuracy allows. With neither, the method's own rule decides.
    """
    config, rounds = context.config, len(context.epochs.infer)
    if config.has_budget:
        share = (number + 1) / rounds
        steps = as_targets({cost: value**share for cost, value in config.budget.items()})
        for most in (group_cut(rounds), 1.0):
            try:
                return plan_for_budget(
                    costs_of(state),
                    context.table_of(state.plan),
                    **steps,
                    limits=replace(context.limits, max_cut=most),
                    dense=context.dense_cost,
                )
            except PlanError:
                if most == 1.0:
                    raise
    if config.within_drop:
        return deepest(context, state, costs_of(state))
    return by_rule(context, state)


def by_rule(context: Context, state: State) -> PruningPlan:
    """The method's own rule, on all channels that the last fit has scored."""
    assert state.latest is not None
    limits, method = context.limits, context.method
    return plan(state.latest, method.rule, method.threshold, min_channels=limits.min_channels, round_to=limits.round_to)


def group_cut(rounds: int) -> float:
    """Share of a group that one round takes at the most: half, or more where few rounds have to do.

    A layer that loses nearly all of its channels at once has no time to recover; one that may only be halved,
    in few rounds, makes others pay. In VGG-16 with three rounds of halving, the first convolution lost 26 of 64
    channels with an SNR around 5 while the last ones kept hundreds below 1.
    """
    return max(0.5, 1 - THINNEST ** (1 / rounds))


def deepest(context: Context, state: State, costs: dict[str, Tensor]) -> PruningPlan:
    """The largest cut whose validation accuracy stays above the floor, before any tuning."""
    base = state.base
    assert base is not None
    return largest_cut(
        state.net,
        context.table_of(state.plan),
        costs,
        lambda small: float(context.score(context.refreshed(small)) or 0.0),
        worth_trying(base, context.config.max_drop, state.base_error, context.point(base)),
        smallest=LARGEST_CUT,
        limits=context.limits,
        copy=False,
    )
