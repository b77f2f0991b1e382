"""`rbp`: Recursive Bayesian Pruning (Zhou et al., ICCV 2019).

Found in the paper's abstract and introduction: Gaussian noise multiplies each channel, the noise of
successive layers is tied in a Markov chain, and a Dirac-like prior lets each layer's noise be fitted
alone, given the layers before it; layers are treated one after the other.
Reconstructed: the prior's density, its KL and the cut rule. `rbp` uses two narrow spikes, at 0 and
at 1, whose responsibility is an inclusion probability; `rbp-spike` a single Gaussian spike at 0.
Within a budget or a drop, both rank channels by the curvature that the data add to the spike's
(:func:`~pyrobnn.guides.noise.spike_loss`, ours).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from pyrobnn.channels import PruningPlan
from pyrobnn.channels.planner import Limits, as_targets, plan_for_budget
from pyrobnn.criteria.rules import plan
from pyrobnn.errors import PlanError
from pyrobnn.guides.noise import NormalNoise
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate
from pyrobnn.methods.noise import start_at_curvature
from pyrobnn.pipeline.choices import deepest
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.pipelines import tuning
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.pipeline.stages import Stage, accept, cut, infer, train_dense
from pyrobnn.pipeline.state import State
from pyrobnn.priors.noise import SpikeNoise, TwoSpikeNoise


class NarrowSpikes(Callback):
    """Narrows the prior's spikes from `wide` to `narrow` (geometrically) over a fit.

    Noise that starts at 1 between narrow spikes never crosses to 0, useful or not; between wide ones
    it does, and what is left when they are narrow is Dirac-like.
    """

    def __init__(self, wide: float = 1.0, narrow: float = 0.1) -> None:
        self.wide, self.narrow = wide, narrow

    def on_start(self, state: FitState) -> FitUpdate:
        return FitUpdate(tensors={"prior.tau": self.wide * (self.narrow / self.wide) ** state.progress})

    def on_batch_end(self, state: FitState) -> FitUpdate:
        return self.on_start(state)


def recursive(context: Context) -> list[Stage]:
    """Layer by layer in forward order: infer its noise, cut, fold, and go on in the smaller network.

    Each layer so sees the inputs that its pruned predecessors really give, and later layers are
    fitted in an ever smaller network. Residual groups are treated once, where their first producer is.
    With `--max-drop` every layer is cut as deep as validation accuracy allows, and the first layer whose
    inference does not bring the network back ends the recursion: the cut before it is taken back.
    """
    judged = context.config.within_drop
    names = [group.name for group in context.table]
    epochs = sum(context.epochs.infer) / len(names)
    stages = [train_dense()]
    for number, name in enumerate(names):
        stages.append(infer(number, epochs=epochs, only=name))
        if judged:
            stages.append(accept(number))
        stages.append(cut(number, partial(_choose, name=name, remaining=names[number:]), fold=True))
    return [*stages, *tuning(context, judged=judged)]


def _choose(context: Context, state: State, number: int, *, name: str, remaining: list[str]) -> PruningPlan:
    """What stays of one group: by inclusion, by accuracy, or by its share of what the budget still asks for."""
    config, table, limits = context.config, context.table_of(state.plan), context.limits
    assert state.latest is not None
    mine = replace(state.latest, channels={name: state.latest.channels[name]})
    costs = mine.costs()
    if config.within_drop:
        return deepest(context, state, costs)
    if not config.has_budget:
        method = context.method
        return plan(mine, method.rule, method.threshold, min_channels=limits.min_channels, round_to=limits.round_to)
    left, widths = context.left(state.plan), table.widths()
    goals = {}
    for kind, target in config.budget.items():
        # The rest of the cut in log space, by each remaining group's part of the cost.
        parts = {other: float(getattr(table[other].cost, kind)) * widths[other] for other in remaining}
        share = parts[name] / max(sum(parts.values()), 1e-12)
        goals[kind] = left[kind] * min(1.0, target / left[kind]) ** share
    try:
        return plan_for_budget(costs, table, limits=limits, dense=context.dense_cost, **as_targets(goals))
    except PlanError:
        return plan_for_budget_floor(mine, limits)


def plan_for_budget_floor(posterior: Any, limits: Limits) -> PruningPlan:
    """The deepest cut that the limits allow, for a group that cannot meet its share alone."""
    return plan(
        posterior,
        "snr",
        float("inf"),
        min_channels=limits.min_channels,
        round_to=limits.round_to,
        max_cut=limits.max_cut,
    )


RBP = Method(
    name="rbp",
    title="recursive, two-spike (Dirac-like) channel noise",
    source="Zhou et al. 2019; prior, KL and threshold reconstructed",
    cut_where="responsibility of the spike at 1 < 1/2 (with a target: fewest nats per cost, layer by layer)",
    prior=TwoSpikeNoise,
    guide=NormalNoise,
    rule="inclusion",
    recipes=recipes(
        guide={"init_scale": 0.1},
        kl_warmup=0.3,
        kl_rewarm=True,
        small={"infer.lr": 5e-4, "infer.guide_lr": 2e-2},
        deep={"infer.guide_lr": 1e-2},
    ),
    callbacks=lambda context, state, number: [NarrowSpikes()],
    pipeline=recursive,
)

RBP_SPIKE = replace(
    RBP,
    name="rbp-spike",
    title="recursive, single-spike channel noise",
    cut_where="SNR < 1 (with a target: fewest nats per cost, layer by layer)",
    prior=SpikeNoise,
    rule="snr",
    # A constant width is a tie of all channels; one as wide as the spike reads as no curvature at all.
    start=start_at_curvature,
    callbacks=lambda context, state, number: [],
    recipes=RBP.recipes.with_values({"kl_warmup": 1.0, "kl_weight": 0.1}),
)
