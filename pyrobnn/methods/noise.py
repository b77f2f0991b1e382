"""Channel-noise methods in the common pipeline: `ard` (ours) and `sbp`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.distributions import TruncatedLogNormal
from pyrobnn.guides.noise import NormalNoise, TruncatedLogNormalNoise, stationary_loss
from pyrobnn.inference.callbacks import Callback
from pyrobnn.inference.pricing import PricedKL
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.pipeline.state import State
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise
from pyrobnn.summary.types import ChannelSummary, Posterior


def round_goal(context: Context, state: State, number: int) -> dict[str, float]:
    """What may be left after this round: a geometric step of the budget, or half of what there is."""
    config, share = context.config, (number + 1) / len(context.epochs.infer)
    if config.has_budget:
        targets = {"macs": config.target_macs, "params": config.target_params}
        return {name: value**share for name, value in targets.items() if value is not None}
    return {"macs": 0.5 * context.left(state.plan)["macs"]}


def priced(context: Context, state: State, number: int) -> list[Callback]:
    """KL by marginal price, with the multiplier set by dual ascent on the round's goal.

    Without a budget there is nothing to insist on: the KL never counts more than the ELBO says, or
    inference could not bring back what the last cut lost.
    """
    most = 1e4 if context.config.has_budget else 1.0
    return [PricedKL(round_goal(context, state, number), context.dense_cost, bounds=(0.05, most))]


def ard_loss(snr: Tensor, weight: float) -> Tensor:
    """Nats of log-likelihood lost without a channel, read off its fitted noise under a weighted ARD KL.

    Where w * 1/2 log(1 + mu^2 / sigma^2) balances a likelihood of curvature h in the noise, the
    stationary sigma gives 1/2 h mu^2 = 1/2 w SNR^4 / (1 + SNR^2). So the price in w does not count
    twice when the loss is divided by the cost saved.
    """
    square = snr.square()
    return 0.5 * weight * square.square() / (1 + square)


def log_uniform_loss(posterior: TruncatedLogNormal, weight: float) -> Tensor:
    """The same under a weighted log-uniform KL: ½ h, h from the stationary scale (:func:`stationary_loss`).

    A channel that the data do not hold goes back to its prior, and no scale of it is stationary: the part 1 − e^(−KL²)
    takes its loss to 0 with the KL, and leaves others as they are.
    """
    q = TruncatedLogNormal(
        posterior.loc.detach().double(), posterior.scale.detach().double(), posterior.a, posterior.b, validate_args=False
    )
    kl = math.log(posterior.b - posterior.a) - q.entropy_log()
    return (weight * stationary_loss(q) * -torch.expm1(-kl.square())).float()


def _unpriced(scoring: ScoringContext, loss: Callable[[Any, ChannelSummary, float], Tensor]) -> Posterior:
    """The posterior with `nats` as lost by the likelihood, whatever the channel's KL was priced with."""
    price: PricedKL = scoring.callback(PricedKL)
    posterior = scoring.posterior
    for name, summary in posterior.channels.items():
        weight = price.kl_weight * price.weights.get(name, 1.0)
        posterior.channels[name] = replace(summary, nats=loss(scoring.guide, summary, weight).cpu())
    return posterior


# Deep networks lose little to noise and need their epochs for tuning.
NOISE = recipes(
    infer_distillation=0.7,
    small={"infer.guide_lr": 1e-2, "rounds": 8, "infer_share": 0.3},
    deep={"infer.lr": 3e-4, "infer.guide_lr": 5e-3, "rounds": 4, "infer_share": 0.25},
)

ARD = Method(
    name="ard",
    title="ARD channel noise, KL priced by cost, budget by dual ascent",
    source="ours; KL of VIBNet (Dai et al. 2018)",
    cut_where="fewest nats per MAC (SNR < 1 without a target)",
    prior=ARDNoise,
    guide=NormalNoise,
    recipes=NOISE.with_values({"guide.init_scale": 0.1}),
    callbacks=priced,
    score=lambda scoring: _unpriced(scoring, lambda guide, summary, w: ard_loss(summary.snr, w)),
)

SBP = Method(
    name="sbp",
    title="truncated log-normal channel noise, log-uniform prior",
    source="Neklyudov et al. 2017 (released code); priced budget ours",
    cut_where="fewest nats per MAC (SNR < 1 without a target)",
    prior=LogUniformNoise,
    guide=TruncatedLogNormalNoise,
    recipes=NOISE.with_values({"guide.init_log_scale": -3.0}),
    callbacks=priced,
    score=lambda scoring: _unpriced(
        scoring, lambda guide, summary, w: log_uniform_loss(guide.posterior(f"{summary.group}.noise"), w)
    ),
)
