"""The search for the smallest network within `--max-drop`, after the first tuning.

If the tuned network misses the drop, the search starts from a network that holds it without tuning: one that inference
has left, else a cut of the dense network. It then bisects, in the logarithm of the MACs, between the smallest network
that held the drop and the largest that did not. Each attempt takes the network nearest above the size it is after, of
those that inference left between the two and the one that held, cuts it by the scores of its last fit and tunes it for its
share of the remaining epochs. The result is the smallest network that held the drop, whatever the last
attempt gave.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch

from pyrobnn.channels import PruningPlan
from pyrobnn.channels.planner import plan_for_budget
from pyrobnn.channels.search import largest_cut
from pyrobnn.errors import PlanError
from pyrobnn.pipeline import acceptance
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.stages import Stage, back_to, cut_to, tuned
from pyrobnn.pipeline.state import State
from pyrobnn.summary.types import ChannelSummary, Posterior

ATTEMPT = "attempt"
UNTUNED = "untuned"  # the stage before the attempts
MOST_ATTEMPTS = 4
LEAST_EPOCHS = 2  # of an attempt
FURTHER = 0.5  # share of the MACs that an attempt keeps as long as none has missed
CLOSE = 0.95  # two sizes that are no two
TELLING = 1.001  # a size above one that missed, whatever rounding does


def search() -> list[Stage]:
    """A network that holds the drop untuned, attempts on smaller ones, and the choice among what they left."""
    return [untuned(), *(attempt(number) for number in range(MOST_ATTEMPTS)), settle()]


def epochs_of(number: int, left: float) -> int:
    """Epochs of an attempt, where so many are left for it and those after it; 0 where they are too few.

    >>> [epochs_of(number, left) for number, left in ((0, 19), (1, 15), (3, 5), (0, 5), (1, 2), (2, 1.5))]
    [4, 5, 5, 2, 2, 0]
    """
    count = min(MOST_ATTEMPTS - number, int(left) // LEAST_EPOCHS)
    return int(left) // count if count > 0 else 0


def untuned() -> Stage:
    """Where tuning missed the drop: the smallest network that is known to hold it as it is."""

    def run(context: Context, state: State) -> State:
        found = holding(context, judged(context, state, "tune"))
        if found.best is None:  # nothing else says where to look: what missed is the bound, however little it missed by
            found = replace(found, missed=max(found.missed, context.left(found.plan)["macs"]))
        return found

    def holding(context: Context, state: State) -> State:
        if state.best is not None or context.method.zeros is not None:
            return state
        assert state.held is not None
        held = context.store.state(state.held).plan
        if (
            not held.is_full
        ):  # its inference brought it back; where that is what tuning lost, nothing has missed by size
            missed = state.missed if state.missed * TELLING < context.left(held)["macs"] else 0.0
            return replace(state, best=state.held, missed=missed)
        whole = _scored(_whole(context, state))
        assert whole.latest is not None and whole.base is not None
        plan = largest_cut(
            whole.net,
            context.table,
            whole.latest.costs(),
            lambda small: float(context.score(context.refreshed(small)) or 0.0),
            acceptance.floor(whole.base, context.config.max_drop),
            limits=context.limits,
        )
        if plan.is_full:
            return state
        small = cut_to(context, whole, plan, 0)
        return replace(small, tuned=context.score(small.net), best=UNTUNED)

    return Stage(UNTUNED, run)


def attempt(number: int) -> Stage:
    """Cut and tune once more, from the first of :func:`_sources` that has something left to cut."""
    name = f"{ATTEMPT} {number + 1}"

    def run(context: Context, state: State) -> State:
        state = judged(context, state, context.store.newest[1] if context.store.newest else None)
        epochs = epochs_of(number, context.epochs.total - sum(state.spent.values()))
        for source in _sources(context, state) if epochs else []:
            small = _smaller(context, source, state.missed)
            if small is not None:
                left = context.left(small.plan)["macs"]
                context.say(f"{name}: {100 * left:.1f} % of the MACs", "cyan")
                return _better(context, small, tuned(context, small, name, name, epochs))
        return state

    return Stage(name, run)


def _better(context: Context, before: State, after: State) -> State:
    """The tuned network; the same as it was, where only that holds the drop: tuning is no gain to every one."""
    assert after.base is not None and after.tuned is not None
    if context.method.zeros is not None or acceptance.holds(after.tuned, after.base, context.config.max_drop):
        return after
    score = context.score(before.net)
    assert score is not None
    if not acceptance.holds(score, after.base, context.config.max_drop):
        return after
    return replace(before, net=context.settled(before.net), spent=after.spent, tuned=score)


def settle() -> Stage:
    """The smallest network that held the drop; the dense one, as it was, where none did."""

    def run(context: Context, state: State) -> State:
        state = judged(context, state, None if context.store.newest is None else context.store.newest[1])
        if state.best is not None:
            chosen = _source(context, state)
        else:
            context.say("no smaller network held the drop: the dense one is left as it is")
            full = PruningPlan.full(context.table)
            extras = {key: value for key, value in state.extras.items() if key != "zeros"}
            posterior = state.posterior.decide(full)
            chosen = replace(
                state,
                net=state.dense,
                plan=full,
                variational=None,
                posterior=posterior,
                rounds=(),
                tuned=state.base,
                extras=extras,
            )
        return replace(chosen, spent=state.spent, accepted=None, held=None, trail=(), best=None)

    return Stage("settle", run)


def judged(context: Context, state: State, name: str | None) -> State:
    """The state of a stage that has just tuned, with the bounds moved by how its network did.

    A first tuning that misses by less than the images can show says nothing of smaller networks: one image of 120 ended
    the search at half of the MACs that other seeds removed. An attempt is believed, or the search would never end.
    """
    assert state.base is not None and state.tuned is not None
    if name is None or name in (state.best, state.accepted, state.held):
        return state
    size, drop = context.left(state.plan)["macs"], context.config.max_drop
    if not acceptance.holds(state.tuned, state.base, drop):
        seen = name.startswith(ATTEMPT) or acceptance.clearly_misses(state.tuned, state.base, drop, state.base_error)
        return replace(state, missed=max(state.missed, size)) if seen else state
    smaller = state.best is None or size < context.left(context.store.state(state.best).plan)["macs"]
    return replace(state, best=name) if smaller else state


def next_size(upper: float, missed: float, *, held: bool) -> float | None:
    """Share of the MACs that the next attempt leaves; None where there is nothing between the bounds.

    Args:
        upper: share of the smallest network that held the drop.
        missed: of the largest that did not, 0 if there is none.
        held: a tuned network has held it; else `upper` is of one that is not tuned.

    >>> next_size(0.5, 0.0, held=True), next_size(0.4, 0.1, held=False), next_size(0.4, 0.39, held=True)
    (0.25, 0.2, None)
    """
    if not missed:
        return FURTHER * upper if held else None
    size = math.sqrt(upper * missed)
    return size if missed < CLOSE * upper else None


class Source(NamedTuple):
    """A network to cut from, the share of the MACs to cut it to (None: none is left), and whether it has been tuned."""

    state: State
    size: float | None
    is_tuned: bool


def _sources(context: Context, state: State) -> list[Source]:
    """In the order in which they are tried: one that inference left on the way, the smallest that held the drop after tuning.

    Before there is one, the last that held it untuned, then the dense one with the last score of every channel. Where
    single weights are zeroed, which takes a posterior, the network that held alone.
    """
    held = state.best is not None
    source = _source(context, state)
    upper = context.left(source.plan)["macs"]
    size = next_size(upper, state.missed, held=held)
    found = [Source(source, size, held)]
    if context.method.zeros is not None:
        return found
    if size is not None and (way := _on_the_way(context, state, size, upper)) is not None:
        found.insert(0, Source(way, size, False))
    return found if held else [*found, Source(_whole(context, state), next_size(1.0, state.missed, held=False), False)]


def _on_the_way(context: Context, state: State, size: float, upper: float) -> State | None:
    """The smallest network that a round of inference left of at least this size, smaller than the one that held."""
    for name in reversed(state.trail):
        left = context.left(context.store.state(name).plan)["macs"]
        if left >= CLOSE * size:
            return back_to(context, state, name) if state.missed * TELLING < left < CLOSE * upper else None
    return None


def _whole(context: Context, state: State) -> State:
    """The dense network with the last score of every channel."""
    full = PruningPlan.full(context.table)
    decided = state.posterior.decide(full)
    return replace(
        state, net=state.dense, plan=full, variational=None, latest=None, records=(), posterior=decided, rounds=()
    )


def _smaller(context: Context, source: Source, missed: float) -> State | None:
    """The source cut to its size; as it is, where no size is left between it and what missed; None where that is vain."""
    current = _scored(source.state)
    upper, size = context.left(current.plan)["macs"], source.size
    assert current.latest is not None
    try:
        if size is not None and (source.is_tuned or size < CLOSE * upper):
            plan = plan_for_budget(
                current.latest.costs(),
                context.table_of(current.plan),
                target_macs=size,
                limits=context.limits,
                dense=context.dense_cost,
            )
            if context.left(current.plan.compose(plan))["macs"] > missed * TELLING:
                return None if plan.is_full else cut_to(context, current, plan, len(current.rounds))
    except PlanError:  # below what the limits leave
        return None
    # One unit may be all that lies between them.
    return source.state if not source.is_tuned and current.rounds and upper > missed * TELLING else None


def _source(context: Context, state: State) -> State:
    """The smallest network that held the drop after tuning; before there is one, the last that held it untuned."""
    name = state.best or state.held
    assert name is not None
    earlier = context.store.state(name)
    score = earlier.recovered if earlier.tuned is None else earlier.tuned
    return replace(back_to(context, state, name), tuned=score, extras=earlier.extras)


def _scored(state: State) -> State:
    """The state with a score for every channel that has one: of the last fit, else of the last decision."""
    channels = {}
    for name, summary in state.posterior.channels.items():
        units = torch.as_tensor(state.plan.keep[name], dtype=torch.long)
        channels[name] = _part(summary, units)
    latest = state.latest or Posterior({}, {})
    return replace(state, latest=replace(latest, channels={**channels, **latest.channels}))


def _part(summary: ChannelSummary, units: torch.Tensor) -> ChannelSummary:
    columns = ("snr", "nats", "kept", "evidence", "loc", "scale", "ranking")
    values = {name: getattr(summary, name) for name in columns}
    return replace(summary, **{name: value[units] for name, value in values.items() if value is not None})
