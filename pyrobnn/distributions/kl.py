"""Closed-form KL divergences that torch and Pyro do not have; importing this module registers them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Gamma, InverseGamma, LogNormal, Normal, kl_divergence, register_kl
from torch.nn.functional import softplus

from pyrobnn.distributions.ard import ARD
from pyrobnn.distributions.binary import StraightThroughBernoulli, SwitchedNormal
from pyrobnn.distributions.capped_laplace import CappedLaplace
from pyrobnn.distributions.folded import expected_abs, expected_capped
from pyrobnn.distributions.log_uniform import LogUniform
from pyrobnn.distributions.stable import HALF_LOG_2PI_E
from pyrobnn.distributions.truncated_log_normal import TruncatedLogNormal
from pyrobnn.distributions.two_spike import TwoSpike, component_kls


@register_kl(TruncatedLogNormal, LogUniform)
def _truncated_log_normal_log_uniform(q: TruncatedLogNormal, p: LogUniform) -> Tensor:
    """log(b − a) − H[log θ]; the Jacobians of log cancel (Neklyudov et al. 2017, eq. 14)."""
    if q.a < p.a or q.b > p.b:  # q has mass where p has none
        return torch.full_like(q.loc, math.inf)
    return q._back(math.log(p.b - p.a) - q.entropy_log())


@register_kl(Normal, ARD)
def _normal_ard(q: Normal, p: ARD) -> Tensor:
    """½ log(1 + μ²/σ²) (Dai et al. 2018, eq. 10), which is log |μ|/σ to the last digit where the square would overflow."""
    with torch.no_grad():
        far = q.loc.abs() > 1e9 * q.scale
    loc, scale = torch.where(far, 1.0, q.loc), torch.where(far, 1.0, q.scale)
    near = 0.5 * torch.log1p((loc / scale).square())
    return torch.where(far, torch.where(far, q.loc, 1.0).abs().log() - torch.where(far, q.scale, 1.0).log(), near)


@register_kl(Normal, TwoSpike)
def _normal_two_spike(q: Normal, p: TwoSpike) -> Tensor:
    """The tightest two-component bound; see :class:`TwoSpike`."""
    off, on = component_kls(q, p)
    return -torch.logaddexp(torch.log1p(-p.mix) - off, p.mix.log() - on)


@register_kl(Normal, CappedLaplace)
def _normal_capped_laplace(q: Normal, p: CappedLaplace) -> Tensor:
    """−H[q] + E[penalty] + log Z, with E|w| and E min(|w|, cap) of the folded normal."""
    penalty = p.penalty(expected_abs(q.loc, q.scale), expected_capped(q.loc, q.scale, p.cap))
    return penalty + p.log_normaliser - q.scale.log() - HALF_LOG_2PI_E


@register_kl(StraightThroughBernoulli, Bernoulli)
def _straight_through_bernoulli(q: StraightThroughBernoulli, p: Bernoulli) -> Tensor:
    """As torch has it for two Bernoullis of probability inside (0, 1), without its look-up of those that are 0 or 1."""
    inclusion = q.logits.sigmoid()
    on = inclusion * (softplus(-p.logits) - softplus(-q.logits))
    return on + (1 - inclusion) * (softplus(p.logits) - softplus(q.logits))


@register_kl(SwitchedNormal, Normal)
def _switched_normal_normal(q: SwitchedNormal, p: Normal) -> Tensor:
    slab = kl_divergence(Normal(q.loc, q.scale, validate_args=False), p)
    off = kl_divergence(Normal(q.off_loc, q.off_scale, validate_args=False), p)
    return q.inclusion * slab + (1 - q.inclusion) * off


def _log_normal_gamma_kl(m: Tensor, s: Tensor, concentration: Any, rate: Any) -> Tensor:
    mean = (m + 0.5 * s.square()).exp()
    normaliser = torch.lgamma(concentration) - concentration * torch.log(rate)
    return normaliser - concentration * m + rate * mean - s.log() - HALF_LOG_2PI_E


@register_kl(LogNormal, Gamma)
def _log_normal_gamma(q: LogNormal, p: Gamma) -> Tensor:
    """lnΓ(α) − α log β − α m + β e^(m + s²/2) − log s − ½ log 2πe."""
    return _log_normal_gamma_kl(q.loc, q.scale, p.concentration, p.rate)


@register_kl(LogNormal, InverseGamma)
def _log_normal_inverse_gamma(q: LogNormal, p: InverseGamma) -> Tensor:
    """1/x is log-normal(−m, s) under q and Gamma(α, β) under p, and the KL does not change."""
    return _log_normal_gamma_kl(-q.loc, q.scale, p.concentration, p.rate)
