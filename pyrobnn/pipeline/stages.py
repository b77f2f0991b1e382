"""The stages that pipelines are lists of: functions from one state to the next.

A stage's name is where it is stored and what the terminal shows; its seed is a hash of a string of its own, so that
a new name changes no run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pyrobnn.channels import PruningPlan, check_cut, compact
from pyrobnn.channels.surgery import fill_cut
from pyrobnn.criteria.context import ScoringContext
from pyrobnn.inference.callbacks import Callback, load_states, states
from pyrobnn.inference.progress import cut_line
from pyrobnn.inference.record import ChannelHistory
from pyrobnn.inference.shrink import shrink
from pyrobnn.io.processes import current
from pyrobnn.nets.replica import copy_net
from pyrobnn.pipeline import acceptance, dense_training
from pyrobnn.pipeline.context import Context, in_original
from pyrobnn.pipeline.holding import LastHeld
from pyrobnn.pipeline.sparsity import KeepZeros, counts
from pyrobnn.pipeline.state import State, VariationalState, copied
from pyrobnn.priors.base import Prior
from pyrobnn.summary.reading import deterministic_net
from pyrobnn.summary.summarize import summarize

DENSE_SEED, INFER_SEED, TUNE_SEED, RETUNE_SEED = "dense", "infer {}", "tune", "retune"
SCRATCH_SEED, FRESH_SEED = "from scratch", "fresh weights"

Choose = Callable[[Context, State, int], PruningPlan]


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


def train_dense() -> Stage:
    """The dense network: given weights as they are, else trained; and its validation accuracy."""

    def run(context: Context, state: State) -> State:
        if context.trained:
            net, epochs = copy_net(state.dense), 0
        else:
            epochs = context.epochs.dense
            net, history = context.train_plain("dense", state.dense, epochs, context.recipe.dense, seed=DENSE_SEED)
            training = dense_training.judged([float(row["nll"]) for row in history])
            state = state.with_extras(dense_training=training)
            if (line := dense_training.warning(training)) is not None:
                context.say(line)
        base, error = context.scored(net) if context.validates else (None, 0.0)
        net = context.settled(net)
        spent = {"dense": epochs, "infer": 0, "tune": 0}
        return replace(
            state, dense=net, net=net, base=base, base_error=error, spent=spent, accepted="dense", held="dense"
        )

    return Stage("dense", run)


def infer(number: int, *, epochs: float | None = None, only: str | None = None) -> Stage:
    """Fit the posterior of the current network, if it has epochs to; read it off.

    Args:
        number: of the round, from 0.
        epochs: passes over the training data, possibly a fraction (default: the schedule's).
        only: place latents on this group alone.
    """
    name = f"infer {number + 1}"

    def run(context: Context, state: State) -> State:
        method, recipe = context.method, context.recipe
        model, guide = context.model_of(state, only)
        passes = float(context.epochs.infer[number]) if epochs is None else epochs
        seed = INFER_SEED.format(number + 1)
        callbacks = method.callbacks(context, state, number)
        if state.variational is not None:
            load_states(callbacks, state.variational.callbacks)
        history = ChannelHistory()
        if passes:
            steps = context.data.train.steps(context.epochs.batch_size)
            whole = math.ceil(passes)
            config = context.fit_config(
                recipe.infer,
                seed,
                whole,
                max_steps=math.ceil(passes * steps / whole),
                estimator=context.estimator,
                kl_schedule=recipe.kl_schedule(number),
                validate=False,
            )
            terms = context.teacher.answers(state.dense, recipe.infer_distillation)
            fresh = state.variational is None or state.variational.guide is None
            if fresh and method.start is not None:
                method.start(context, state, model, guide, callbacks)
            result = context.fit(name, model, guide, config, terms=terms, callbacks=[*callbacks, history])
            model, guide = result.model, result.guide
        found = summarize(model, guide, seed=context.seed(seed))
        if only is not None:
            found.channels = {only: found.channels[only]}
        net = context.refreshed(deterministic_net(model, guide))
        posterior = found
        if method.score is not None:
            scoring = ScoringContext(
                replace(found, channels=dict(found.channels)),
                table=model.groups,
                net=net,
                model=model,
                guide=guide,
                data=context.data,
                callbacks=callbacks,
                plan=state.plan,
                round=number,
                batch_size=context.epochs.batch_size,
                device=context.device,
                seed=context.seed,
            )
            posterior = method.score(scoring)
        # What was recorded on the way is of the same statistic, unless the method scores channels by one of its own.
        same = all(
            channel.snr is found.channels[name].snr and history.kinds[name] == channel.statistic
            for name, channel in posterior.channels.items()
        )
        records = [{name: record[name] for name in posterior.channels} for record in history.records[:-1]]
        accuracy = context.score(net)
        prior = model.prior
        variational = VariationalState(
            copied(guide.state_dict()),
            copied(model.net.state_dict()),
            prior.state_dict() if isinstance(prior, Prior) else {},
            states(callbacks),
            only,
            getattr(guide, "start", {}),
        )
        if only is None:
            context.keep_fitted(variational, model, guide)
        return replace(
            state,
            net=context.settled(net),
            variational=variational,
            latest=posterior,
            records=tuple(records) if same else (),
            spent=state.spend("infer", passes),
            recovered=accuracy,
        )

    return Stage(name, run, number)


def accept(number: int) -> Stage:
    """Judge a round after its inference: remember the network, or go back to the one before and end the rounds."""

    def run(context: Context, state: State) -> State:
        base, drop = state.base, context.config.max_drop
        assert base is not None and state.recovered is not None and state.accepted is not None
        if number and not acceptance.recovered(state.recovered, base, drop, state.base_error, context.point(base)):
            return replace(back_to(context, state, state.accepted), stopped=True)
        here = f"infer {number + 1}"
        held = not number or acceptance.holds(state.recovered, base, drop)
        return replace(state, accepted=here, held=here if held else state.held)

    return Stage(f"accept {number + 1}", run, number)


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
        best=state.best,
        missed=state.missed,
        stopped=state.stopped,
    )


def cut(number: int, choose: Choose, *, fold: bool = False, until_nothing: bool = False) -> Stage:
    """Cut network, guide and posterior to the plan that `choose` makes (coordinates of the current network).

    Args:
        number: of the round, from 0.
        choose: makes the plan.
        fold: the noise is over: its mean is in the weights, and the next round starts a new one.
        until_nothing: a plan that removes nothing ends the rounds.
    """

    def run(context: Context, state: State) -> State:
        plan = current().agreed(choose(context, state, number))
        after = cut_to(context, state, plan, number, fold=fold)
        if not (until_nothing and plan.is_full):
            return after
        context.say(f"round {number + 1}: nothing is redundant")
        return replace(after, stopped=True)

    return Stage(f"cut {number + 1}", run, number)


def cut_to(context: Context, state: State, plan: PruningPlan, number: int, *, fold: bool = False) -> State:
    """The state after a cut to `plan`, which was chosen from the scores in `latest`; arguments as for :func:`cut`."""
    assert state.latest is not None
    before, after = state.plan, state.plan.compose(plan)
    latest = state.latest.decide(plan, context.threshold, round=number)
    merged = latest if not state.posterior.channels else state.posterior.merge(latest, before)
    read = {name: channel.snr for name, channel in latest.channels.items()}
    records = [in_original(record, before) for record in (*state.records, read)]
    merged = replace(merged, history=[*state.posterior.history, *records])
    variational, table = state.variational, context.table_of(before)
    if variational is not None and (fold or variational.only is not None):
        variational = replace(variational, guide=None, net=None)
    if variational is not None and variational.guide is not None:
        small, guide = shrink(*context.fitted(state), plan, copy=False)
        variational = replace(variational, guide=copied(guide.state_dict()), net=copied(small.net.state_dict()))
        # The model has done its part: its network, cut already, becomes the plain one.
        net = context.settled(fill_cut(small.released(small.bare_net, {}), state.net, table, plan))
    else:
        net = compact(state.net, plan, None, groups=table)
    check_cut(state.net, net, plan, table, context.data.example.to(context.device))
    net = context.refreshed(net)
    left, dense, accuracy = context.left(after), context.dense_cost, context.score(net)
    entry: dict[str, Any] = {
        "round": len(state.rounds) + 1,
        "params": round(left["params"] * dense.params),
        "macs": round(left["macs"] * dense.macs),
        **context.validation_entry(accuracy),
        "widths": after.widths(),
        "epochs": dict(state.spent),
    }
    context.say(cut_line(entry["round"], before.widths(), entry["widths"], left, context.words(accuracy)), "cyan")
    return replace(
        state,
        net=context.settled(net),
        plan=after,
        latest=None,
        records=(),
        posterior=merged,
        variational=variational,
        rounds=(*state.rounds, entry),
    )


def tune(epochs: int) -> Stage:
    """Fine-tune the current plain network with distillation from the dense one."""
    return Stage("tune", lambda context, state: tuned(context, state, "tune", TUNE_SEED, epochs))


def tuned(context: Context, state: State, name: str, seed: str, epochs: int) -> State:
    """The state after tuning. What the method zeroes weight by weight is zeroed first and stays so.

    Under `--max-drop` tuning ends with the last epoch that held it, if the very last did not. (Averaged weights are
    those of no epoch: they are judged as they are.)
    """
    zeros = None if context.method.zeros is None else context.method.zeros(context, state)
    callbacks: list[Callback] = [] if zeros is None else [KeepZeros(zeros.keep)]
    if context.config.within_drop and state.base is not None and not context.recipe.average:
        callbacks.append(LastHeld(context.score_of_row, acceptance.floor(state.base, context.config.max_drop)))
    net, _ = context.train_plain(
        name, state.net, epochs, context.recipe.tune, seed=seed, dense=state.dense, callbacks=callbacks
    )
    accuracy = context.score(net)
    after = replace(state, net=context.settled(net), spent=state.spend("tune", epochs), tuned=accuracy)
    return after if zeros is None else after.with_extras(zeros={**zeros.report, **counts(net, zeros.keep)})


def retune(epochs: int) -> Stage:
    """Where tuning missed the accuracy, spend epochs on a larger network, or on this one if none is left."""

    def larger(context: Context, state: State) -> str | None:
        """Where a larger network than the current one lies: the last that held the drop before any tuning.

        If none did, the last that came near. A round that failed is taken back before the tuning, so what was
        accepted last may be the network that has just been tuned.
        """
        for name in (state.held, state.accepted):
            if name is not None:
                earlier = context.store.state(name)
                if earlier.rounds and earlier.plan != state.plan:
                    return name
        return None

    def run(context: Context, state: State) -> State:
        base, drop = state.base, context.config.max_drop
        assert base is not None and state.tuned is not None
        if epochs and not acceptance.holds(state.tuned, base, drop):
            name = larger(context, state)
            if name is None:
                context.say(
                    "tuning missed the accuracy, and no larger network but the dense one is left: tuning goes on"
                )
            else:
                context.say("tuning missed the accuracy: back to a larger network, which inference had brought back")
                state = back_to(context, state, name)
            state = tuned(context, state, "retune", RETUNE_SEED, epochs)
        assert state.tuned is not None
        if not acceptance.holds(state.tuned, base, drop):
            short = 100 * (acceptance.floor(base, drop) - state.tuned)
            context.say(
                f"the result is {short:.2f} points short of what was asked on validation data: give it more --epochs"
            )
        return replace(state, accepted=None, held=None)

    return Stage("retune", run)


def train_from_scratch(plan: PruningPlan) -> Stage:
    """A control: the compact architecture of a plan, trained from fresh weights for all epochs.

    The dense network beside it in the report is the given (or freshly made, untrained) one.
    """

    def run(context: Context, state: State) -> State:
        small = reset(compact(state.dense, plan, None, groups=context.table), context.seed(FRESH_SEED))
        epochs = context.epochs.total
        net, _ = context.train_plain("from scratch", small, epochs, context.recipe.dense, seed=SCRATCH_SEED)
        return replace(state, net=net, plan=plan, spent={"dense": 0, "infer": 0, "tune": epochs})

    return Stage("from scratch", run)


def reset(net: nn.Module, seed: int) -> nn.Module:
    """Fresh weights from each module's own `reset_parameters`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.modules():
            fresh = getattr(module, "reset_parameters", None)
            if callable(fresh):
                fresh()
    return net
