"""The factors of the Turbo-VBI posterior: closed-form updates, and their contributions to the ELBO.

Source: Liu et al. 2020 and Xia, Tsang, Lau 2023 for the mean-field formulas; the joint form is ours.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl

from pyrobnn.distributions.chains import TwoLevelChain
from pyrobnn.distributions.crossing import CrossingChains
from pyrobnn.errors import ConfigError
from pyrobnn.priors.turbo import GatedGamma, PrecisionPrior


def update_precision(inclusion: Tensor, square: Tensor, prior: PrecisionPrior) -> tuple[Tensor, Tensor]:
    """Optimal q(ρ) = Γ(ã, b̃): ã = π̃a + (1−π̃)ā + ½, b̃ = π̃b + (1−π̃)b̄ + ½⟨w²⟩.

    Args:
        inclusion: π̃, any shape.
        square: ⟨w²⟩ = μ² + σ², the same shape.
        prior: the two Gamma priors.

    Returns:
        (ã, b̃), shape and rate.
    """
    shape = inclusion * (prior.a - prior.a_off) + (prior.a_off + 0.5)
    rate = inclusion * (prior.b - prior.b_off) + prior.b_off + 0.5 * square
    return shape, rate


def support_evidence(shape: Tensor, rate: Tensor, prior: PrecisionPrior) -> Tensor:
    """ln C − ln C̄ with ln C = a ln b − ln Γ(a) + (a−1)⟨ln ρ⟩ − b⟨ρ⟩: what q(ρ) tells the support."""
    p = prior
    constant = p.a * math.log(p.b) - math.lgamma(p.a) - p.a_off * math.log(p.b_off) + math.lgamma(p.a_off)
    evidence = constant - (p.b - p.b_off) * (shape / rate)
    if p.a != p.a_off:
        evidence = evidence + (p.a - p.a_off) * (torch.digamma(shape) - rate.log())
    return evidence


def joint_evidence(square: Tensor, prior: PrecisionPrior) -> Tensor:
    """The same with ρ integrated out given s: ln ∫ Γ(ρ; a, b) exp⟨ln N(w; 0, 1/ρ)⟩ dρ, on minus off."""
    total = torch.zeros_like(square)
    for sign, a, b in ((1, prior.a, prior.b), (-1, prior.a_off, prior.b_off)):
        constant = a * math.log(b) - math.lgamma(a) + math.lgamma(a + 0.5)
        total = total + sign * (constant - (a + 0.5) * (b + 0.5 * square).log())
    return total


def gamma_kl(shape: Tensor, rate: Tensor, a: float, b: float) -> Tensor:
    """KL(Γ(shape, rate) ‖ Γ(a, b)) per element; `shape` may be a scalar tensor."""
    return (
        (shape - a) * torch.digamma(shape)
        - torch.lgamma(shape)
        + math.lgamma(a)
        + a * (rate.log() - math.log(b))
        + shape * (b / rate - 1)
    )


class HeldFactor(TorchDistribution):
    """A variational factor that stays fixed while gradients move the others.

    A draw is its mean, because what depends on it is linear in it; its KL was worked out when it
    was last updated. `log_prob` is 0, so that a Monte Carlo ELBO has the right gradients and a loss
    that is off by a constant between updates.

    Args:
        mean: the value handed on, `[*event]`.
        divergence: its KL to the prior, a scalar, in nats.
    """

    has_rsample = True

    def __init__(self, mean: Tensor, divergence: Tensor) -> None:
        self._mean, self.divergence = mean, divergence
        super().__init__(torch.Size(), mean.shape, validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        return {}

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self._mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> HeldFactor:
        if torch.Size(batch_shape) != torch.Size():
            raise ConfigError(f"a held factor has one value and cannot be expanded to {tuple(batch_shape)}")
        return self

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._mean.expand(torch.Size(sample_shape) + self._mean.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])


def _held_kl(q: HeldFactor, p: Any) -> Tensor:
    return q.divergence


for _prior in (TwoLevelChain, CrossingChains, GatedGamma):
    register_kl(HeldFactor, _prior)(_held_kl)


def mixture_precision(inclusion: Tensor, square: Tensor, prior: PrecisionPrior) -> tuple[Tensor, Tensor]:
    """(ã, b̃) of the joint form: ã/b̃ keeps the mean of q(ρ)'s mixture, which is all that the weights see."""
    on, off = (a + 0.5 for a in (prior.a, prior.a_off))
    mean = inclusion * on / (prior.b + square / 2) + (1 - inclusion) * off / (prior.b_off + square / 2)
    shape = inclusion * on + (1 - inclusion) * off
    return shape, shape / mean


def mean_field_kl(inclusion: Tensor, shape: Tensor, rate: Tensor, prior: PrecisionPrior) -> Tensor:
    """⟨KL(q(ρ) ‖ p(ρ|s))⟩ + ½Σ(ln⟨ρ⟩ − ⟨ln ρ⟩) of q(ρ)q(s).

    The second term turns KL(N(μ, σ²) ‖ N(0, 1/⟨ρ⟩)), which the weight's site contributes, into
    the expected KL under q(ρ): all sites together give the exact ELBO.
    """
    total = 0.5 * (shape / rate).log()
    for share, a, b in ((inclusion, prior.a, prior.b), (1 - inclusion, prior.a_off, prior.b_off)):
        total = total + share * gamma_kl(shape, rate, a, b)
    total = total - 0.5 * (torch.digamma(shape) - rate.log())
    return total.flatten(1).sum(-1).sum()


def joint_kl(inclusion: Tensor, shape: Tensor, rate: Tensor, square: Tensor, prior: PrecisionPrior) -> Tensor:
    """As :func:`mean_field_kl`, of q(s)q(ρ|s); (ã, b̃) is that of :func:`mixture_precision`."""
    total = 0.5 * (shape / rate).log()
    for share, a, b in ((inclusion, prior.a, prior.b), (1 - inclusion, prior.a_off, prior.b_off)):
        own, own_rate = square.new_tensor(a + 0.5), b + square / 2
        total = total - 0.5 * share * (torch.digamma(own) - own_rate.log())
        total = total + share * gamma_kl(own, own_rate, a, b)
    return total.flatten(1).sum(-1).sum()
