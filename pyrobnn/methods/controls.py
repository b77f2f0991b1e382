"""Controls: criteria of plain-network pruning on the same road, so that every claim has one.

Where the Bayesian methods infer, these train the plain network for as many epochs, with the same
distillation, rounds and budget planner; only what the cut is read from differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from pyrobnn.channels import ChannelTable
from pyrobnn.criteria.scores import Scores, fpgm_scores, l1_norms, moments_of, norm_scales, scored, taylor_scores
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.precision import channels_last
from pyrobnn.pipeline.iterative import iterative_road
from pyrobnn.pipeline.method import Method, Reading
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.summary.types import Posterior

TAYLOR_BATCHES = 16


def _control(
    name: str,
    title: str,
    source: str,
    score: Callable[[Reading, ChannelTable], Scores],
    usable: Callable[[nn.Module, ChannelTable], ChannelTable] | None = None,
) -> Method:
    def read(reading: Reading) -> Posterior:
        table = reading.model.groups
        assert table is not None
        return scored(reading.posterior, score(reading, table), table)

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
        read=read,
        usable=usable,
        stops=True,
        road=iterative_road,
    )


def _l1(reading: Reading, table: ChannelTable) -> Scores:
    return l1_norms(table, moments_of(reading.net))


def _taylor(reading: Reading, table: ChannelTable) -> Scores:
    run = reading.run
    batches = run.data.train.batches(
        run.epochs.batch_size,
        generator=torch.Generator().manual_seed(run.seed(f"taylor {reading.number + 1}")),
        device=run.device,
        channels_last=True,
    )
    return taylor_scores(channels_last(reading.net), table, itertools.islice(batches, TAYLOR_BATCHES))


def _random(reading: Reading, table: ChannelTable) -> Scores:
    generator = torch.Generator().manual_seed(reading.run.seed(f"random scores {reading.number + 1}"))
    return {group.name: torch.rand(group.channels, generator=generator) for group in table}


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
    lambda reading, table: norm_scales(reading.net, table),
    with_norms,
)
FPGM = _control(
    "fpgm",
    "distance to the other filters of the layer",
    "He et al. 2019 (geometric median)",
    lambda reading, table: fpgm_scores(reading.net, table),
)
TAYLOR = _control("taylor", "gradient of a gate on the channel", "Molchanov et al. 2019", _taylor)
RANDOM = _control("random", "random scores", "none", _random)
CONTROLS = (L1, BN_SCALE, FPGM, TAYLOR, RANDOM)
