"""Log evidence for keeping a channel, under the prior it was fitted with, at likelihood weight 1.

A fit with a weighted KL leaves a width that is not the posterior's. :func:`untempered` converts it into the curvature of
the likelihood, and that into the width at KL weight 1. :func:`channel_evidence` takes a loss in nats for a quadratic
log-likelihood with its peak at 1 and integrates it over the gate under a prior. Negative: the data would be more probable
without the channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrobnn.distributions import ARD, TwoSpike
from pyrobnn.distributions.base import base_distribution
from pyrobnn.model import BayesianModel
from pyrobnn.summary.saliency import log_evidence
from pyrobnn.summary.types import Posterior


def untempered(loc: Tensor, scale: Tensor, prior_scale: Tensor | float, kl_weight: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior at KL weight 1, from those at weight w, under N(0, s²).

    At weight w the precision is h / w + 1/s², h the curvature of the likelihood, and the mean (h / w) ŵ / precision,
    ŵ its peak: both say what h and ŵ are. Where the data have not narrowed the prior, h is 0.

    Args:
        loc, scale: of the fitted posterior, any shape.
        prior_scale: s.
        kl_weight: w.

    Returns:
        Two float64 tensors.
    """
    mu, precision = loc.double(), scale.double().clamp_min(1e-12).pow(-2)
    prior = torch.as_tensor(prior_scale, dtype=torch.float64).to(mu.device).pow(-2)
    tempered = (precision - prior).clamp_min(0.0)  # h / w
    pull = torch.where(tempered > 0, kl_weight * precision * mu, 0.0)  # h ŵ
    whole = kl_weight * tempered + prior
    return pull / whole, whole.rsqrt()


def weight_evidence(loc: Tensor, scale: Tensor, prior_scale: Tensor | float, kl_weight: float = 1.0) -> Tensor:
    """Savage-Dickey log ratio of every coordinate under N(0, s²) at KL weight 1, whatever it was fitted with; float64."""
    return log_evidence(*untempered(loc, scale, prior_scale, kl_weight), prior_scale)


def channel_evidence(nats: Tensor, prior: Any) -> Tensor:
    """Log evidence for keeping channels whose removal loses this much log-likelihood, under their own prior.

    The likelihood is exp(−½ F (θ − 1)²), F = 2 nats.

    - N(0, s²): log ∫ L p − log L(0) = ½ F² / (F + s⁻²) − ½ log(1 + F s²).
    - ARD, N(0, γ) with γ fitted: the best γ is 1 − 1/F, with ½ (F − 1 − log F); where F ≤ 1 no γ above 0 raises the evidence, and
      the value has the other sign.
    - two spikes: the posterior log-odds of the one at 1, log ∫ L N(1, τ²) − log ∫ L N(0, τ²) + logit π.
    - others: a Gaussian of the greatest marginal likelihood for the group (:func:`gate_evidence`). Under a log-uniform prior
      the likelihood rises all the way from 0 to 1, so that the evidence itself never speaks for a cut.

    Args:
        nats: `[channels]` of one group, not negative.
        prior: of one channel's factor.

    Returns:
        `[channels]`, float32.
    """
    f = 2 * nats.double()
    if isinstance(prior, ARD):
        f = f.clamp_min(1e-30)
        return ((f - 1).sign() * 0.5 * (f - 1 - f.log())).float()
    if isinstance(prior, TwoSpike):
        mix, tau = prior.mix.double().cpu(), prior.scale1.double().cpu()
        on, off = (-0.5 * f * gap**2 / (1 + f * tau.square()) for gap in (0.0, 1.0))
        return (on - off + torch.logit(mix)).float()
    if isinstance(prior, torch.distributions.Normal) and not bool(prior.loc.any()):
        return _under_normal(f, prior.scale.double().cpu()).float()
    return gate_evidence(nats)


def with_nats(posterior: Posterior, nats: Mapping[str, Tensor], priors: Mapping[str, Any]) -> Posterior:
    """The posterior with these losses of log-likelihood, `{group: [channels]}`, and the evidence under the channels' priors.

    Args:
        posterior: whose channels these are.
        nats: of the groups that have some; others stay as they are.
        priors: `{group: distribution of one channel's noise}`, None for one that is fitted; evidence is that of groups that
            are named.
    """
    channels = dict(posterior.channels)
    for name, lost in nats.items():
        if name in channels:
            lost = lost.detach().cpu().float()
            found = channel_evidence(lost, priors[name]) if name in priors else None
            channels[name] = replace(channels[name], nats=lost, unit="nats", evidence=found)
    return replace(posterior, channels=channels)


def noise_priors(model: BayesianModel) -> dict[str, Any]:
    """`{group: prior of its channels' noise}`, as it is now."""
    found = {}
    for name, site in model.sites().items():
        group = model.group_of_site(name)
        if group is not None and name.endswith(".noise"):
            found[group] = base_distribution(site["fn"])
    return found


def gate_evidence(nats: Tensor, prior_scale: float | None = None) -> Tensor:
    """The same for a Gaussian gate under N(0, s²).

    Args:
        nats: `[channels]` of one group, not negative.
        prior_scale: s; None is that of the group's greatest marginal likelihood (:func:`fit_prior_scale`).

    >>> gate_evidence(torch.tensor([0.0, 0.1, 10.0])).sign().tolist()
    [0.0, -1.0, 1.0]
    """
    information = 2 * nats.double()
    scale = fit_prior_scale(torch.diag(information)) if prior_scale is None else prior_scale
    return _under_normal(information, torch.as_tensor(scale, dtype=torch.float64)).float()


def _under_normal(information: Tensor, scale: Tensor) -> Tensor:
    variance = 1 / (information + scale.pow(-2))
    return log_evidence(information * variance, variance.sqrt(), scale)


def gate_moments(information: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of gates under a N(0, s²) prior and a quadratic log-likelihood with its peak at 1."""
    eye = torch.eye(len(information), dtype=information.dtype)
    covariance = torch.linalg.inv(information + eye / scale**2)
    return covariance @ information.sum(1), covariance


def fit_prior_scale(information: Tensor) -> float:
    """The s of N(0, s²) under which gates with this Fisher information, peak at 1, are most probable.

    The fixed point s² = mean(μ² + σ²) (MacKay 1992), over the channels of a group.

    Args:
        information: `[channels, channels]`.

    >>> round(fit_prior_scale(1e8 * torch.eye(4, dtype=torch.float64)), 3)   # known exactly to be 1
    1.0
    """
    square = 1.0
    for _ in range(100):
        loc, covariance = gate_moments(information, square**0.5)
        new = float((loc.square() + covariance.diagonal()).mean())
        if abs(new - square) < 1e-9 * square:
            break
        square = new
    return float(square**0.5)
