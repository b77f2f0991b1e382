"""Criteria of plain-network pruning, used as controls; they need no posterior."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.criterion import Criterion
from pyrobnn.criteria.laplace import EXAMPLES, training_images
from pyrobnn.criteria.scores import Scores, fpgm_scores, l1_norms, moments_of, norm_scales, scored, taylor_scores
from pyrobnn.inference.curvature import gate_fisher
from pyrobnn.inference.precision import channels_last
from pyrobnn.summary.types import Posterior

TAYLOR_BATCHES = 16
LINE = 0.1  # of the group's root mean square: what goes where no target and no other line is given


def _plain(name: str, label: str, scores: Callable[[ScoringContext], Scores], unit: str = "share") -> Criterion:
    def score(scoring: ScoringContext) -> Posterior:
        found = scored(scoring.posterior, scores(scoring), scoring.need("table", name), unit=unit)
        channels = {
            group: replace(summary, threshold=LINE * float(summary.snr.square().mean().sqrt()))
            for group, summary in found.channels.items()
        }
        return replace(found, channels=channels)

    return Criterion(name, label, unit, score)


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


def _group_fisher(scoring: ScoringContext) -> Scores:
    """½ N mean (Σ x ∂L/∂x)² over all readers and positions of a channel, with the true labels (Liu et al. 2021, eq. 8)."""
    net, data, table = (scoring.need(what, "group-fisher") for what in ("net", "data", "table"))
    seed = int(scoring.generator(f"group-fisher {scoring.round + 1}").initial_seed() % 2**31)
    images = training_images(net, data, EXAMPLES, seed)
    fisher = gate_fisher(net, table, images, data_size=len(data.train), labels="data")
    return {name: 0.5 * value for name, value in fisher.diagonal.items()}


L1 = _plain("l1", "L1 norm", _l1)
BN_SCALE = _plain(
    "bn-scale",
    "scale of the BatchNorm",
    lambda scoring: norm_scales(scoring.need("net", "bn-scale"), scoring.need("table", "bn-scale")),
)
FPGM = _plain(
    "fpgm",
    "distance to the other filters",
    lambda scoring: fpgm_scores(scoring.need("net", "fpgm"), scoring.need("table", "fpgm")),
)
TAYLOR = _plain("taylor", "gradient of a gate", _taylor)
RANDOM = _plain("random", "random score", _random)
GROUP_FISHER = _plain("group-fisher", "group Fisher", _group_fisher, unit="nats")
