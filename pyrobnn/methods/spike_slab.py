"""`ss-ig`, `ss-gl`, `ss-ghs`: spike-and-slab node selection (Jantre, Bhattacharya and Maiti 2021, 2023).

Found in the authors' released code: a Bernoulli inclusion per channel, the three slabs, their KLs, the
prior inclusion and the rule (inclusion probability above one half, the median-probability model).
`ss-edge` is SS-IG's weight-level variant.

Ours, because the published runs take 1,200 epochs from fresh weights and these start from trained
ones: slabs in units of each layer's own weights, gates that learn faster than means, a gradient of the
gates without bias, and, with a budget, a KL of the gates that is priced by cost and scaled by dual
ascent. Left alone, the KL of a gate (9 nats at λ = 1e-4) is nothing beside the likelihood of 60,000
images, and only the price of the weights behind it would close gates, largest rows first.

What a budget spends is the curvature of the likelihood along a gate, averaged over draws of the posterior (ours). At
equilibrium the odds of a gate say what the likelihood loses without it, logit γ = logit λ + (Δ − K) / w, K the KL of its
slabs and w the weight of its own; but no gate gets there in the epochs of a run where |Δ − K| / w is in the hundreds, and
then that formula reads little but K, the number of weights in a row. LeNet-5 at 30 % of its MACs, one cut: 46 % of the
images right by the formula, 98 % by the curvature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from pyrobnn.criteria.curvature import CURVATURE
from pyrobnn.guides.spike_slab import SpikeSlabGuide
from pyrobnn.inference.callbacks import Callback
from pyrobnn.inference.pricing import PricedKL
from pyrobnn.inference.recipe import kind_of
from pyrobnn.methods.noise import round_goal, start_at_curvature
from pyrobnn.model import BayesianModel
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.pipeline.sparsity import SupportPrice, choose_zeros, zero_goal
from pyrobnn.pipeline.state import State
from pyrobnn.priors.spike_slab import EdgeSpikeSlab, SpikeSlab

# The gates' KL starts at ten times that of the ELBO: closing one of LeNet's convolution channels costs
# the likelihood a hundredth of a nat an image, its KL saves 6 nats for all 60,000 images together.
FIRST_PRICE = 10.0
EVERY = 20  # steps between updates of the price
RANGE = 1e3  # what the price can rise by in one round, however short: gates that are still open say nothing
SOURCE = "Jantre, Bhattacharya, Maiti 2021, 2023 (released code)"


def _priced(context: Context, state: State, number: int) -> list[Callback]:
    """With a target the gates' KL is priced; without one the prior inclusion alone decides."""
    if not context.config.has_budget and not context.config.within_drop:
        return []
    updates = context.epochs.infer[number] * len(context.data.train) / (context.epochs.batch_size * EVERY)
    return [
        PricedKL(
            round_goal(context, state, number),
            context.dense_cost,
            site="gate",
            start=FIRST_PRICE / context.recipe.kl_weight,
            rate=min(0.5, max(0.1, RANGE ** (1 / max(1.0, updates)) - 1)),
            every=EVERY,
            bounds=(1.0, 1e6),
        )
    ]


def _start(
    context: Context, state: State, model: BayesianModel, guide: SpikeSlabGuide, callbacks: Sequence[Callback]
) -> None:
    """Deep networks start where the curvature of the gates would leave them.

    A small network on few images is better off with open gates: half of them closed is more than it has learnt to do
    without.
    """
    if kind_of(state.net) == "deep":
        start_at_curvature(context, state, model, guide, callbacks)


SS_IG = Method(
    name="ss-ig",
    title="spike-and-slab channels, isotropic Gaussian slab",
    source=f"{SOURCE}; priced budget ours",
    cut_where="inclusion probability < 1/2 (with a target: fewest softened nats per cost, the curvature of each gate expected under the posterior)",
    prior=partial(SpikeSlab, "theory", relative=True),
    guide=SpikeSlabGuide,
    rule="inclusion",
    # A cold posterior, warmed up in the first round: 430,000 slabs say more than 60,000 images. Gates start open enough
    # to leave the trained function alone, closed enough to have a gradient. Deep networks need their epochs for tuning.
    recipes=recipes(
        kl_warmup=0.5,
        guide={"init_rho": None},
        small={
            "infer.guide_lr": 1e-3,
            "rounds": 5,
            "estimator": "local",
            "kl_weight": 0.1,
            "guide.init_inclusion": 0.95,
            "guide.gate_lr": 20.0,
            "guide.scale_lr": 5.0,
        },
        deep={
            "infer.guide_lr": 2e-4,
            "infer_share": 0.25,
            "kl_weight": 0.01,
            "guide.init_inclusion": 0.98,
            "guide.gate_lr": 75.0,
            "guide.scale_lr": 25.0,
        },
    ),
    callbacks=_priced,
    start=_start,
    score=CURVATURE,
)

SS_GL = replace(
    SS_IG,
    name="ss-gl",
    title="spike-and-slab channels, group-lasso slab",
    prior=partial(SpikeSlab, "theory", relative=True, slab="gl"),
)

SS_GHS = replace(
    SS_IG,
    name="ss-ghs",
    title="spike-and-slab channels, regularised group-horseshoe slab",
    prior=partial(SpikeSlab, "theory", relative=True, slab="ghs"),
)


def _edge_callbacks(context: Context, state: State, number: int) -> list[Callback]:
    """The same for the weights: priced where a target says how many may stay."""
    if context.config.target_nonzero is None:
        return []
    return [SupportPrice(zero_goal(context, number + 1), context.dense_cost.params, start=1 / context.recipe.kl_weight)]


SS_EDGE = replace(
    SS_IG,
    name="ss-edge",
    title="spike-and-slab weights (edges), isotropic Gaussian slab",
    cut_where="no weight of the channel included; single weights: inclusion < 1/2, zeroed",
    prior=partial(EdgeSpikeSlab, 0.5, relative=True),
    callbacks=_edge_callbacks,
    start=None,
    score=None,
    zeros=choose_zeros,
)
