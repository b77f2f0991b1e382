"""Inference and tuning for `criteria.py`, with the settings that the package's methods have in a run.

A fit is one round of one epoch under a budget of 60 % of the MACs; what it leaves is a network, costs of its channels, and
how far its posterior is from where it began.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from criteria_bench import Bench
from scipy import stats
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.criteria.scores import filter_sums, l1_norms, moments_of, norm_scales
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.callbacks import Callback
from pyrobnn.methods.registry import METHODS
from pyrobnn.pipeline.config import CompressionConfig
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.rounds import scored
from pyrobnn.pipeline.schedule import Epochs
from pyrobnn.pipeline.state import State
from pyrobnn.pipeline.store import RunStore
from pyrobnn.summary.reading import deterministic_net
from pyrobnn.summary.summarize import summarize
from pyrobnn.tasks import classification

Costs = dict[str, Tensor]
GOAL = 0.6  # share of the MACs that a fit is told to leave
BATCH = 128


@dataclass(frozen=True)
class Fitted:
    """What one epoch of inference has left.

    Attributes:
        costs: of the channels, as a budget spends them.
        net: at the posterior means, BatchNorm statistics measured again.
        moved: figures of the way from the start.
    """

    costs: Costs
    net: nn.Module
    moved: dict[str, Any]


def context_of(bench: Bench, method: str, seed: int, epochs: int, goal: float) -> Context:
    """A run of one round, as `compress` would make it, without its files."""
    chosen = METHODS[method]
    config = CompressionConfig(method=method, target_macs=goal, seed=seed, trained=True, progress=False)
    recipe = chosen.recipes.of(bench.net)
    planned = Epochs(0, (epochs,), 1, 0, recipe.batch_size or BATCH)
    store = RunStore(None, {}, bench.net, torch.device("cpu"))
    return Context(config, chosen, recipe, planned, bench.data, bench.net, bench.table, store, True, classification())


def infer(bench: Bench, method: str, seed: int) -> Fitted:
    """One round of one epoch."""
    context = context_of(bench, method, seed, 1, GOAL)
    state = State(dense=bench.net, net=bench.net, plan=pb.PruningPlan.full(bench.table))
    model, guide = context.model_of(state)
    callbacks = context.method.callbacks(context, state, 0)
    began = time.perf_counter(), time.process_time()
    if context.method.start is not None:
        context.method.start(context, state, model, guide, callbacks)
    first, scales = _score(context, state, model, guide, bench.net, callbacks), _scales(guide)
    started = time.perf_counter()
    recipe = context.recipe
    share = recipe.pass_share
    config = context.fit_config(
        recipe.infer,
        "infer 1",
        1,
        max_steps=math.ceil(share * context.data.train.steps(context.epochs.batch_size)),
        estimator=context.estimator,
        kl_schedule=recipe.kl_schedule(0),
        validate=False,
    )
    result = context.fit("infer 1", model, guide, config, callbacks=callbacks)
    ended = time.perf_counter()
    net = bench.settled(deterministic_net(result.model, result.guide).to(memory_format=torch.channels_last), seed)
    last = _score(context, state, result.model, result.guide, net, callbacks)
    moved = {
        "passes": share,
        "start_seconds": round(started - began[0], 1),
        "fit_seconds": round(ended - started, 1),
        "cpu_seconds": round(time.process_time() - began[1], 1),
        "log_scale_change": _change(scales, _scales(result.guide)),
        "correlation_with_start": within(last, first),
        **{f"correlation_with_{name}": within(last, norm) for name, norm in norms(bench).items()},
    }
    return Fitted(last, net, moved)


def _score(context: Context, state: State, model: Any, guide: Any, net: nn.Module, callbacks: list[Callback]) -> Costs:
    found = summarize(model, guide, draws=0)
    return scored(context, state, found, model, guide, net, callbacks).costs()


def _scales(guide: Any) -> dict[str, Tensor]:
    return {site: scale.clone() for site, (_, scale) in guide.moments().items() if bool((scale > 0).any())}


def _change(before: dict[str, Tensor], after: dict[str, Tensor]) -> float | None:
    """Median over all coordinates of |Δ log σ|."""
    parts = [(after[site] / before[site]).log().abs().flatten() for site in before if site in after]
    if not parts:
        return None
    found = torch.cat(parts)
    return round(float(found[found.isfinite()].median()), 4)


def norms(bench: Bench) -> dict[str, Costs]:
    """Norms of the given filters: L1, L2, and the scale of the BatchNorm."""
    moments = moments_of(bench.net)
    squares = filter_sums(bench.table, lambda name: moments[name][0].square())
    found = {"l1": l1_norms(bench.table, moments), "l2": squares}
    scales = norm_scales(bench.net, bench.table)
    return {**found, "bn_scale": scales} if scales else found


def within(costs: Costs, others: Costs) -> float:
    """Spearman's correlation within a group, averaged over the groups by their channels."""
    names = [name for name in costs if name in others and len(costs[name]) > 2]
    found = [float(stats.spearmanr(costs[n].numpy(), others[n].numpy()).statistic) for n in names]
    sizes = [len(costs[n]) for n in names]
    kept = [(value, size) for value, size in zip(found, sizes, strict=True) if math.isfinite(value)]
    if not kept:
        return math.nan
    return round(float(np.average([v for v, _ in kept], weights=[s for _, s in kept])), 4)


def tune(bench: Bench, net: nn.Module, epochs: float, seed: int) -> nn.Module:
    """A plain network after tuning, distilled from the whole one, in the way that the controls are tuned in a run."""
    context = context_of(bench, "l1", seed, 1, GOAL)
    whole, steps = math.ceil(epochs), context.data.train.steps(BATCH)
    config = context.fit_config(
        context.recipe.tune, "tune", whole, max_steps=math.ceil(epochs / whole * steps), validate=False
    )
    model = pb.BayesianModel(net, data_size=len(bench.data.train), likelihood=context.likelihood)
    terms = context.teacher.distillation(bench.net, context.recipe.distillation)
    result = context.fit("tune", model, NoLatents(), config, terms=terms)
    return bench.settled(result.model.net.to(memory_format=torch.channels_last), seed)
