"""The common road: infer and cut in rounds, then tune. To a budget, within a drop, or by a rule."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from pyrobnn.channels import PruningPlan, compact
from pyrobnn.channels.planner import Limits, plan_for_budget
from pyrobnn.channels.search import largest_cut
from pyrobnn.criteria.rules import plan
from pyrobnn.errors import PlanError
from pyrobnn.pipeline.acceptance import begin, finish, floor, resolution, survives
from pyrobnn.pipeline.journal import Carry
from pyrobnn.pipeline.run import Run
from pyrobnn.pipeline.run_state import state_of
from pyrobnn.summary.state import from_state

# A round of inference brings back what the last cut lost; how much it may lose before that, in points.
LOSS_PER_CUT = 5.0
LARGEST_CUT = 0.35  # share of the current MACs and parameters that one round leaves at the least
THINNEST = 1 / 32  # share of a group that all rounds together leave at the least, unless the budget asks for more


def common_road(run: Run) -> None:
    """Dense network → (posterior → cut) in rounds → tuning.

    With a budget every round cuts to a geometric step of it. With `--max-drop` each round cuts as
    deep as validation accuracy allows and the run goes back one round when it does not recover.
    With neither, the method's own rule decides once per round.
    """
    within_drop = run.request.max_drop is not None and not run.request.has_budget
    if within_drop:
        begin(run)
    else:
        run.start()
    for number in range(len(run.epochs.infer)):
        run.infer(number)
        if within_drop and not survives(run, number):
            break
        run.cut(number, partial(choose, run, number))
    if within_drop:
        finish(run, run.epochs.tune, run.epochs.retune)
    else:
        run.tune("tune", run.epochs.tune)


def scratch_road(run: Run, wanted: PruningPlan) -> None:
    """A control: the compact architecture of a plan, trained from fresh weights for all epochs.

    The dense network beside it in the report is the given (or freshly made, untrained) one.
    """
    run.journal.step("dense", lambda carry: {"dense": state_of(run.template), "rounds": []})
    small = compact(run.template, wanted, None, groups=run.table)
    epochs = run.epochs.total

    def train(carry: Carry) -> Carry:
        net = run.train_point("from scratch", reset(small, run.seed("fresh weights")), epochs, teacher=None)
        spent = {"dense": 0, "infer": 0, "tune": epochs}
        return {"net": state_of(net), "plan": wanted.to_json(), "epochs": spent, "scratch": True}

    run.journal.step("from scratch", train)


def reset(net: nn.Module, seed: int) -> nn.Module:
    """Fresh weights from each module's own `reset_parameters`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.modules():
            fresh = getattr(module, "reset_parameters", None)
            if callable(fresh):
                fresh()
    return net


def choose(run: Run, number: int) -> PruningPlan:
    """The plan of one round, in the coordinates of the current network."""
    request, table = run.request, run.current_table()
    posterior = from_state(run.carry["latest"])
    nats = posterior.costs()
    limits = Limits(request.min_channels, request.round_to)
    if request.has_budget:
        share = (number + 1) / len(run.epochs.infer)
        targets = {"target_macs": request.target_macs, "target_params": request.target_params}
        steps = {name: None if value is None else value**share for name, value in targets.items()}
        for most in (group_cut(len(run.epochs.infer)), 1.0):
            try:
                return plan_for_budget(nats, table, **steps, limits=replace(limits, max_cut=most), dense=run.dense_cost)
            except PlanError:
                if most == 1.0:
                    raise
    if request.max_drop is None:
        return plan(
            posterior,
            run.method.rule,
            run.method.threshold,
            min_channels=request.min_channels,
            round_to=request.round_to,
        )
    return deepest(run, nats, limits)


def group_cut(rounds: int) -> float:
    """Share of a group that one round takes at the most: half, or more where few rounds have to do.

    A layer that loses nearly all of its channels at once has no time to recover; one that may only be halved,
    in few rounds, makes others pay. In VGG-16 with three rounds of halving, the first convolution lost 26 of 64
    channels with an SNR around 5 while the last ones kept hundreds below 1.
    """
    return max(0.5, 1 - THINNEST ** (1 / rounds))


def deepest(run: Run, nats: dict[str, torch.Tensor], limits: Limits) -> PruningPlan:
    """The largest cut whose validation accuracy stays above the floor, before any tuning."""
    return largest_cut(
        run.net(),
        run.current_table(),
        nats,
        lambda small: run.validation_accuracy(run.refreshed(small)),
        floor(run, LOSS_PER_CUT + resolution(run)),
        smallest=LARGEST_CUT,
        limits=limits,
    )
