"""Controls: criteria of plain-network pruning in the same pipeline, so that every claim has one.

Where the Bayesian methods infer, these train the plain network for as many epochs, with the same
distillation, rounds and budget planner; only what the cut is read from differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from pyrobnn.channels import ChannelTable
from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.scores import Scores, fpgm_scores, l1_norms, moments_of, norm_scales, scored, taylor_scores
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.precision import channels_last
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.pipelines import iterative
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.summary.types import Posterior

TAYLOR_BATCHES = 16


def _control(
    name: str,
    title: str,
    source: str,
    scores: Callable[[ScoringContext], Scores],
    usable: Callable[[nn.Module, ChannelTable], ChannelTable] | None = None,
) -> Method:
    def score(scoring: ScoringContext) -> Posterior:
        return scored(scoring.posterior, scores(scoring), scoring.need("table", name))

    return Method(
        name=name,
        title=f"control: {title}",
        source=source,
        cut_where="smallest part of what is left of the layer's score per cost saved (lowest 20 % a round without a target)",
        prior=lambda: None,
        guide=lambda model: NoLatents(),
        rule="fraction",
        threshold=0.8,
        recipes=recipes(
            rounds=8,
            infer_share=0.25,
            deep={"infer.optimizer": "sgd", "infer.lr": 0.01, "infer.weight_decay": 5e-4},
        ),
        score=score,
        usable=usable,
        stops=True,
        pipeline=iterative,
    )


def _l1(scoring: ScoringContext) -> Scores:
    return l1_norms(scoring.need("table", "l1"), moments_of(scoring.need("net", "l1")))


def _taylor(scoring: ScoringContext) -> Scores:
    batches = scoring.need("data", "taylor").train.batches(
        scoring.batch_size,
        generator=scoring.generator(f"taylor {scoring.round + 1}"),
        device=scoring.device,
        channels_last=True,
    )
    net, table = channels_last(scoring.need("net", "taylor")), scoring.need("table", "taylor")
    return taylor_scores(net, table, itertools.islice(batches, TAYLOR_BATCHES))


def _random(scoring: ScoringContext) -> Scores:
    generator = scoring.generator(f"random scores {scoring.round + 1}")
    return {group.name: torch.rand(group.channels, generator=generator) for group in scoring.need("table", "random")}


def with_norms(net: nn.Module, table: ChannelTable) -> ChannelTable:
    """The groups that pass a BatchNorm; the others are refused."""
    there = norm_scales(net, table)
    reasons = {
        group.name: "bn-scale reads the scales of BatchNorm layers, and these channels pass none"
        for group in table
        if group.name not in there
    }
    return table.without(reasons)


L1 = _control("l1", "L1 norm of the filters", "Li et al. 2017", _l1)
BN_SCALE = _control(
    "bn-scale",
    "scale of the BatchNorm layers (groups without one stay whole)",
    "Liu et al. 2017 (network slimming), without its L1 training",
    lambda scoring: norm_scales(scoring.need("net", "bn-scale"), scoring.need("table", "bn-scale")),
    with_norms,
)
FPGM = _control(
    "fpgm",
    "distance to the other filters of the layer",
    "He et al. 2019 (geometric median)",
    lambda scoring: fpgm_scores(scoring.need("net", "fpgm"), scoring.need("table", "fpgm")),
)
TAYLOR = _control("taylor", "gradient of a gate on the channel", "Molchanov et al. 2019", _taylor)
RANDOM = _control("random", "random scores", "none", _random)
CONTROLS = (L1, BN_SCALE, FPGM, TAYLOR, RANDOM)
