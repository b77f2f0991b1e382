"""`turbo-vbi`: a three-layer hierarchical prior with Markov support (Xia, Tsang and Lau 2023).

Found: the hierarchy support → precision → weight, the alternation of a variational estimator with
message passing, the closed-form updates (Liu et al. 2020). Reconstructed: the layout of the chains on
convolutions and the loop's lengths. Ours: the joint factor q(ρ | s) q(s), rounds that cut filters
without support on the way, and the price of weights by dual ascent where `--target-nonzero` says how
many may stay.

The read-off has two levels: filters whose support is gone are cut, and inside the others single
weights (and so whole kernels) are zeroed and stay zero while tuning.
"""

from __future__ import annotations

import torch

from pyrobnn.guides.turbo import TurboGuide
from pyrobnn.inference.callbacks import Callback, FitState
from pyrobnn.inference.turbo_updates import TurboUpdates
from pyrobnn.inference.turbo_widths import PointWidths
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.pipeline.sparsity import Zeros, choose_zeros, support_report, zero_goal
from pyrobnn.pipeline.state import State
from pyrobnn.priors.turbo import Turbo

PER_EPOCH = 4  # closed-form updates; one an epoch is too few where inference has four epochs
LEAST = 16  # of them in all: a posterior whose factors are updated four times is still that of its start


def _callbacks(context: Context, state: State, number: int) -> list[Callback]:
    """Updates four times an epoch or more, the spike narrowing over the first half; a bound where there is a target.

    Most of the inference is the deterministic relaxation: σ of a weight that the data do not need
    grows towards the slab's, and ⟨w²⟩ = μ² + σ² then takes it for one that they do.
    """
    planned = context.epochs.infer
    last = number == len(planned) - 1

    def size(fit: FitState) -> int:
        others = sum(p.numel() for p in fit.model.net.parameters())
        return max(1, int(zero_goal(context, number + fit.progress) * context.dense_cost.params) - others)

    often = max(PER_EPOCH, -(-LEAST // max(1, sum(planned))))
    return [
        PointWidths(),
        TurboUpdates(
            per_epoch=often,
            anneal=max(1, often * sum(planned) // 2),
            learn=False,
            point_epochs=max(0, planned[number] - 1) if last else planned[number],
            size=size if context.config.target_nonzero is not None else None,
        ),
    ]


def turbo_zeros(context: Context, state: State) -> Zeros:
    """Zeros by the support, and beside its runs those of an independent support read from the same posterior.

    The independent support takes, in each tensor, as many weights, in the order of their own evidence,
    without what the chains say.
    """
    chosen = choose_zeros(context, state)
    guide = context.model_of(state)[1]
    alone = {}
    for name, evidence in guide.weight_evidence().items():
        flat = torch.zeros(evidence.numel(), dtype=torch.bool)
        flat[evidence.cpu().flatten().argsort(descending=True)[: int(chosen.keep[name].sum())]] = True
        alone[name] = flat.reshape(evidence.shape)
    chosen.report["mean_run_independent"] = support_report(alone)["mean_run"]
    return chosen


METHOD = Method(
    name="turbo-vbi",
    title="three-layer hierarchical prior, Markov support, message passing",
    source="Xia, Tsang, Lau 2023; chain layout and loop reconstructed, joint factors and bound ours",
    cut_where="support of the filter < 1/2 (with a budget: smallest share of the evidence per cost); weights zeroed",
    prior=Turbo,
    guide=TurboGuide,
    rule="inclusion",
    # The ELBO as it is in small networks: a weight outside the support then goes to zero in an epoch or so. Where
    # normalisation makes scales free, its ridge on all weights is forty times the usual weight decay; a cold posterior
    # there, though warmer than where every weight has a width to learn.
    recipes=recipes(
        rounds=8,
        kl_warmup=0.5,
        small={"infer.guide_lr": 1e-3, "estimator": "local"},
        deep={"infer.guide_lr": 2e-4, "kl_weight": 0.3},
    ),
    callbacks=_callbacks,
    zeros=turbo_zeros,
)
