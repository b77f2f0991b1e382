"""`Stage`: one step of a pipeline, a function from one state to the next.

Its name is where it is stored and what the terminal shows; its seed is a hash of a string of its own, so that a new
name changes no run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pyrobnn.channels import PruningPlan
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.state import State


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        name: where it is stored, and what the terminal shows.
        run: from the state before to the state after; returning the same state says there was nothing to do.
        round: that it is part of, from 0; it is left out once the rounds are over.
    """

    name: str
    run: Callable[[Context, State], State]
    round: int | None = None


def run_stages(context: Context, stages: Sequence[Stage]) -> State:
    """Run a pipeline, from the newest stage that is stored."""
    store = context.store
    net = context.template.to(context.device)
    state, done = State(dense=net, net=net, plan=PruningPlan.full(context.table)), 0
    if store.newest is not None:
        number, name = store.newest
        state, done = store.state(name), number + 1
    for number, stage in enumerate(stages):
        if number < done or (stage.round is not None and state.stopped):
            continue
        after = stage.run(context, state)
        if after is not state:
            state = replace(after, seconds=store.seconds)
            store.write(number, stage.name, state)
    return state


def back_to(context: Context, state: State, name: str) -> State:
    """The network, plan and posterior that an earlier stage left; what was spent since stays spent."""
    earlier = context.store.state(name)
    posterior = earlier.posterior
    if not earlier.rounds:  # before the first cut: nothing of what was read since is decided
        posterior = state.posterior.decide(PruningPlan.full(context.table))
    return replace(
        earlier,
        posterior=posterior,
        spent=state.spent,
        recovered=state.recovered,
        tuned=state.tuned,
        extras=state.extras,
        accepted=state.accepted,
        held=state.held,
        trail=state.trail,
        best=state.best,
        missed=state.missed,
        stopped=state.stopped,
    )
