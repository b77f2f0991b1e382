"""Controls: criteria of plain-network pruning in the same pipeline, so that every claim has one.

Where the Bayesian methods infer, these train the plain network for as many epochs, with distillation and the same
rounds and budget planner; only what the cut is read from differs.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pyrobnn.channels import ChannelTable
from pyrobnn.criteria import plain
from pyrobnn.criteria.criterion import Criterion
from pyrobnn.criteria.scores import norm_scales
from pyrobnn.guides.function import NoLatents
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.pipelines import iterative
from pyrobnn.pipeline.recipe import recipes


def _control(
    criterion: Criterion,
    title: str,
    source: str,
    usable: Callable[[nn.Module, ChannelTable], ChannelTable] | None = None,
) -> Method:
    shares = "smallest part of what is left of the layer's score per cost saved"
    return Method(
        name=criterion.name,
        title=f"control: {title}",
        source=source,
        cut_where=f"{shares if criterion.unit == 'share' else 'least score per cost saved'} (lowest 20 % a round without a target)",
        prior=lambda: None,
        guide=lambda model: NoLatents(),
        rule="fraction",
        threshold=0.8,
        recipes=recipes(
            rounds=8,
            infer_share=0.25,
            infer_distillation=0.5,
            deep={"infer.optimizer": "sgd", "infer.lr": 0.01, "infer.weight_decay": 5e-4},
        ),
        score=criterion,
        usable=usable,
        stops=True,
        pipeline=iterative,
    )


def with_norms(net: nn.Module, table: ChannelTable) -> ChannelTable:
    """The groups that pass a BatchNorm; the others are refused."""
    there = norm_scales(net, table)
    reasons = {
        group.name: "bn-scale reads the scales of BatchNorm layers, and these channels pass none"
        for group in table
        if group.name not in there
    }
    return table.without(reasons)


L1 = _control(plain.L1, "L1 norm of the filters", "Li et al. 2017")
BN_SCALE = _control(
    plain.BN_SCALE,
    "scale of the BatchNorm layers (groups without one stay whole)",
    "Liu et al. 2017 (network slimming), without its L1 training",
    with_norms,
)
FPGM = _control(plain.FPGM, "distance to the other filters of the layer", "He et al. 2019 (geometric median)")
TAYLOR = _control(plain.TAYLOR, "gradient of a gate on the channel", "Molchanov et al. 2019")
GROUP_FISHER = _control(
    plain.GROUP_FISHER, "squared gradient of a gate, image by image", "Liu et al. 2021 (released code)"
)
RANDOM = _control(plain.RANDOM, "random scores", "none")
CONTROLS = (L1, BN_SCALE, FPGM, TAYLOR, GROUP_FISHER, RANDOM)
