"""The stages of a round: fit the posterior, accept what inference left or go back, cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan, check_cut, compact
from pyrobnn.channels.surgery import fill_cut
from pyrobnn.criteria.context import ScoringContext
from pyrobnn.inference.callbacks import Callback, load_states, states
from pyrobnn.inference.progress import cut_line
from pyrobnn.inference.record import ChannelHistory
from pyrobnn.inference.shrink import shrink
from pyrobnn.io.processes import current
from pyrobnn.model import BayesianModel
from pyrobnn.pipeline import acceptance
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.stage import Stage, back_to
from pyrobnn.pipeline.state import State, VariationalState, copied
from pyrobnn.priors.base import Prior
from pyrobnn.summary.reading import deterministic_net
from pyrobnn.summary.summarize import summarize
from pyrobnn.summary.types import Posterior

INFER_SEED = "infer {}"

Choose = Callable[[Context, State, int], PruningPlan]


def scored(
    context: Context,
    state: State,
    found: Posterior,
    model: BayesianModel,
    guide: Any,
    net: nn.Module,
    callbacks: Sequence[Callback],
    number: int = 0,
) -> Posterior:
    """What `summarize` found of a fitted pair, with the scores of the method where it has its own.

    Args:
        context, state: of the run, before the round.
        found: summary of `model` and `guide`; it is left as it is.
        model, guide: the fitted pair.
        net: the plain network at the posterior means.
        callbacks: of the fit.
        number: of the round, from 0.
    """
    if context.method.score is None:
        return found
    return context.method.score(
        ScoringContext(
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
    )


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
            terms = context.teacher.distillation(state.dense, recipe.infer_distillation)
            fresh = state.variational is None or state.variational.guide is None
            if fresh and method.start is not None:
                method.start(context, state, model, guide, callbacks)
            result = context.fit(name, model, guide, config, terms=terms, callbacks=[*callbacks, history])
            model, guide = result.model, result.guide
        found = summarize(model, guide, seed=context.seed(seed))
        if only is not None:
            found.channels = {only: found.channels[only]}
        net = context.refreshed(deterministic_net(model, guide))
        posterior = scored(context, state, found, model, guide, net, callbacks, number)
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
        if not number or acceptance.holds(state.recovered, base, drop):
            return replace(state, accepted=here, held=here, trail=())
        return replace(state, accepted=here, trail=(*state.trail, here))

    return Stage(f"accept {number + 1}", run, number)


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


def in_original(record: dict[str, Tensor], plan: PruningPlan) -> dict[str, Tensor]:
    """The statistic of every channel in original coordinates, NaN where it was already cut."""
    found = {}
    for name, values in record.items():
        full = torch.full((plan.channels[name],), float("nan"))
        full[torch.as_tensor(plan.keep[name], dtype=torch.long)] = values
        found[name] = full
    return found
