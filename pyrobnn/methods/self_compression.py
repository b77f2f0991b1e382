"""`self-compression`: moment propagation through all layers, and removal of kernels whose norm is near zero.

Carannante, Dera, Rasool and Bouaynaya (2021), on extended variational inference. Found: the first two
moments go through all layers, kernels are ranked by their Frobenius norm, and a loop removes as many
kernels as have a norm near zero, until there is none. Found in the first authors' code: one variance per
kernel, the prior N(0, I), an L1 norm in the KL. Reconstructed: what "near zero" is (the largest gap), and
that the remaining kernels keep their posterior. Ours: diagonal covariances, the tolerance on validation data, the
budget, and the norm behind a normalisation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from pyrobnn.channels import PruningPlan
from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.kernels import rank_kernels, redundancy_plan
from pyrobnn.guides.kernel import KernelMeanField
from pyrobnn.pipeline.choices import choose
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.pipelines import tuning
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.pipeline.stages import Stage, accept, cut, infer, train_dense
from pyrobnn.pipeline.state import State
from pyrobnn.priors.tensor_normal import TensorNormal
from pyrobnn.summary.types import Posterior


def until_none(context: Context) -> list[Stage]:
    """Train, count the redundant kernels, rebuild without them, until none is redundant; then tune.

    What is redundant depends on the target. Without one: the kernels below the largest gap of the
    norms (with `statistic="snr"`, below 0 dB). A tolerance (`--max-drop`): as many of the smallest as
    validation accuracy allows to remove; a network that does not recover from a removal is taken back,
    and the loop ends. A budget: the smallest, down to a geometric step of it in each round.
    """
    judged = context.config.within_drop
    stages = [train_dense()]
    for number, passes in enumerate(_passes(context)):
        stages.append(infer(number, epochs=passes))
        if judged:
            stages.append(accept(number))
        stages.append(cut(number, _redundant, until_nothing=not context.config.has_budget))
    return [*stages, *tuning(context, judged=judged)]


def _passes(context: Context) -> list[float]:
    """Epochs by round. Where kernels are to vanish by themselves, the first round takes half of all.

    There the posterior has to settle before anything can be counted; later rounds start from what the
    remaining kernels have. A recipe may show a part of the images in each planned epoch.
    """
    planned, share = context.epochs.infer, context.recipe.pass_share
    total = sum(planned)
    if share < 1:
        return [share * epochs for epochs in planned]
    if context.config.target or len(planned) == 1:
        return [float(epochs) for epochs in planned]
    first = math.ceil(total / 2)
    rounds = min(len(planned) - 1, total - first)
    return [float(first), *((total - first) // rounds + (k < (total - first) % rounds) + 0.0 for k in range(rounds))]


def _redundant(context: Context, state: State, number: int) -> PruningPlan:
    """The plan of a round."""
    if context.config.target:
        return choose(context, state, number)
    assert state.latest is not None
    return redundancy_plan(state.latest, context.limits)


def _score(scoring: ScoringContext, statistic: str) -> Posterior:
    """The channels ranked as kernels."""
    return rank_kernels(scoring.posterior, scoring.need("table", "self-compression"), statistic)


METHOD = Method(
    name="self-compression",
    title="moments through the network (extended VI); kernels that vanish by themselves",
    source="Carannante et al. 2021; code of Dera et al.; gap rule, diagonal covariance and tolerance ours",
    cut_where="kernel norm below the largest gap (near zero)",
    prior=lambda: TensorNormal("fan_in"),
    guide=KernelMeanField,
    rule="gap",
    # Small networks reach the ELBO itself in the first round; deep normalised ones keep a cold posterior. Kernels become
    # redundant only where the KL is heard: at weight 0.1, which `gaussian` uses, none falls by itself. Deep networks have
    # more weights than examples; there the full KL costs accuracy at once. Scales are one per kernel and have orders of
    # magnitude to go in few steps, so their learning rate is high. A moment step of a deep network costs three plain ones: half a pass
    # an epoch is enough to rank kernels that start from trained weights; what inference does not use is not spent.
    recipes=recipes(
        rounds=12,
        infer_share=0.3,
        estimator="moments",
        kl_warmup=0.5,
        guide={"init_scale": 0.1},
        small={"infer.guide_lr": 1e-3, "guide.scale_lr": 5.0},
        deep={"infer.guide_lr": 2e-4, "kl_weight": 0.01, "guide.scale_lr": 25.0, "pass_share": 0.5},
    ),
    score=partial(_score, statistic="norm"),
    stops=True,
    pipeline=until_none,
)

METHOD_SNR = replace(
    METHOD,
    name="self-compression-snr",
    title="the same loop, kernels ranked by their signal-to-noise ratio",
    cut_where="SNR of the kernel < 1 (0 dB)",
    rule="snr",
    score=partial(_score, statistic="snr"),
)
