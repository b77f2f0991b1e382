"""Channel-noise methods in the common pipeline: `ard` (ours) and `sbp`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.curvature import expected_fisher, ranked
from pyrobnn.criteria.laplace import training_images
from pyrobnn.guides.noise import NormalNoise, TruncatedLogNormalNoise
from pyrobnn.inference.callbacks import Callback
from pyrobnn.inference.curvature import gate_fisher
from pyrobnn.inference.pricing import PricedKL
from pyrobnn.model import BayesianModel
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.pipeline.state import State
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise
from pyrobnn.summary.evidence import noise_priors, with_nats
from pyrobnn.summary.types import Posterior

FISHER_IMAGES = 1000  # that a start is estimated from


def round_goal(context: Context, state: State, number: int) -> dict[str, float]:
    """What may be left after this round: a geometric step of the budget, or half of what there is."""
    config, share = context.config, (number + 1) / len(context.epochs.infer)
    if config.has_budget:
        return {cost: value**share for cost, value in config.budget.items()}
    return {"macs": 0.5 * context.left(state.plan)["macs"]}


def priced(context: Context, state: State, number: int) -> list[Callback]:
    """KL by marginal price, with the multiplier set by dual ascent on the round's goal.

    Without a budget there is nothing to insist on: the KL never counts more than the ELBO says, or
    inference could not bring back what the last cut lost.
    """
    most = 1e4 if context.config.has_budget else 1.0
    return [PricedKL(round_goal(context, state, number), context.dense_cost, bounds=(0.05, most))]


def start_at_curvature(
    context: Context, state: State, model: BayesianModel, guide: Any, callbacks: Sequence[Callback]
) -> None:
    """Begin the first fit where the Laplace posterior of the gates would end it.

    Widths or odds are at equilibrium with the Fisher information of the gates, and the multiplier of a priced KL is
    that which the budget needs; an epoch of inference is then a correction, and not the whole way.
    """
    net, table = state.net.to(context.device), context.table_of(state.plan)
    images = training_images(net, context.data, FISHER_IMAGES, context.seed("curvature"))
    fisher = gate_fisher(
        net,
        table,
        images,
        data_size=len(context.data.train),
        likelihood=context.likelihood,
        seed=context.seed("curvature") % 2**31,
    )
    price = next((found for found in callbacks if isinstance(found, PricedKL)), None)
    if price is None:
        guide.start_at(fisher.diagonal, {}, context.recipe.kl_weight)
    else:
        price.begin(model, guide, fisher.diagonal, context.recipe.kl_weight)


def read_off(scoring: ScoringContext) -> Posterior:
    """The posterior with `nats` as lost by the likelihood, and their evidence, whatever a channel's KL was priced with.

    A budget ranks channels by the curvature under the fitted noise (:func:`~pyrobnn.criteria.curvature.expected_fisher`),
    which sees each of them while the others are disturbed, as they will be after the cut.
    """
    price: PricedKL = scoring.callback(PricedKL)
    weights = {name: price.kl_weight * weight for name, weight in price.weights.items()}
    found = with_nats(scoring.posterior, scoring.need("guide").nats(weights), noise_priors(scoring.need("model")))
    return ranked(found, expected_fisher(scoring))


# Deep networks lose little to noise and need their epochs for tuning.
NOISE = recipes(
    small={"infer.guide_lr": 1e-2, "rounds": 8, "infer_share": 0.3},
    deep={"infer.lr": 3e-4, "infer.guide_lr": 5e-3, "rounds": 4, "infer_share": 0.25},
)

ARD = Method(
    name="ard",
    title="ARD channel noise, KL priced by cost, budget by dual ascent",
    source="ours; KL of VIBNet (Dai et al. 2018)",
    cut_where="fewest softened nats per cost, the curvature expected under the noise (without a target: while the evidence rises)",
    prior=ARDNoise,
    rule="evidence",
    guide=NormalNoise,
    recipes=NOISE.with_values({"guide.init_scale": 0.1}),
    callbacks=priced,
    start=start_at_curvature,
    score=read_off,
)

SBP = Method(
    name="sbp",
    title="truncated log-normal channel noise, log-uniform prior",
    source="Neklyudov et al. 2017 (released code); priced budget ours",
    cut_where="fewest softened nats per cost, the curvature expected under the noise (SNR < 1 without a target)",
    prior=LogUniformNoise,
    guide=TruncatedLogNormalNoise,
    recipes=NOISE.with_values({"guide.init_log_scale": -3.0}),
    callbacks=priced,
    start=start_at_curvature,
    score=read_off,
)
