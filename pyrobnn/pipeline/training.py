"""The stages that train a plain network: the dense one, the compact one after its cuts, a control from fresh weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pyrobnn.channels import PruningPlan, compact
from pyrobnn.inference.callbacks import Callback
from pyrobnn.nets.replica import copy_net
from pyrobnn.pipeline import acceptance, dense_training
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.holding import LastHeld
from pyrobnn.pipeline.sparsity import KeepZeros, counts
from pyrobnn.pipeline.stage import Stage, back_to
from pyrobnn.pipeline.state import State

DENSE_SEED, TUNE_SEED, RETUNE_SEED = "dense", "tune", "retune"
SCRATCH_SEED, FRESH_SEED = "from scratch", "fresh weights"


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


def tune(epochs: int) -> Stage:
    """Fine-tune the current plain network with distillation from the dense one."""
    return Stage("tune", lambda context, state: tuned(context, state, "tune", TUNE_SEED, epochs))


def tuned(context: Context, state: State, name: str, seed: str, epochs: int) -> State:
    """The state after tuning. What the method zeroes weight by weight is zeroed first and stays so.

    Under `--max-drop` tuning ends with the last epoch that steadily held it, if the very last did not. (Averaged weights are
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
        return replace(state, accepted=None, held=None, trail=())

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
