"""Mixtures of two Gaussians: the scale mixture of weights and the two-spike prior of channel noise."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, constraints, kl_divergence
from torch.distributions.utils import broadcast_all

from pyrobnn.distributions.stable import log_phi
from pyrobnn.errors import ConfigError


class NormalPair(TorchDistribution):
    """(1 − mix) N(loc0, scale0²) + mix N(loc1, scale1²).

    Args:
        mix: weight of the second component, in (0, 1); all arguments broadcast.
        loc0: mean of the first component.
        scale0: its standard deviation.
        loc1: mean of the second component.
        scale1: its standard deviation.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "mix": constraints.unit_interval,
        "loc0": constraints.real,
        "scale0": constraints.positive,
        "loc1": constraints.real,
        "scale1": constraints.positive,
    }
    support = constraints.real

    def __init__(
        self,
        mix: Tensor | float,
        loc0: Tensor | float,
        scale0: Tensor | float,
        loc1: Tensor | float,
        scale1: Tensor | float,
        validate_args: Any = None,
    ) -> None:
        self.mix, self.loc0, self.scale0, self.loc1, self.scale1 = broadcast_all(mix, loc0, scale0, loc1, scale1)
        super().__init__(self.mix.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalPair:
        new: NormalPair = self._get_checked_instance(NormalPair, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(NormalPair, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            second = torch.rand(shape, dtype=self.mix.dtype, device=self.mix.device) < self.mix
            noise = torch.randn(shape, dtype=self.mix.dtype, device=self.mix.device)
            return torch.where(second, self.loc1 + self.scale1 * noise, self.loc0 + self.scale0 * noise)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        first = torch.log1p(-self.mix) + log_phi((value - self.loc0) / self.scale0) - self.scale0.log()
        second = self.mix.log() + log_phi((value - self.loc1) / self.scale1) - self.scale1.log()
        return torch.logaddexp(first, second)

    @property
    def mean(self) -> Tensor:
        return (1 - self.mix) * self.loc0 + self.mix * self.loc1

    @property
    def variance(self) -> Tensor:
        within = (1 - self.mix) * self.scale0.square() + self.mix * self.scale1.square()
        return within + self.mix * (1 - self.mix) * (self.loc1 - self.loc0).square()


class TwoSpike(NormalPair):
    """(1 − π) N(0, τ²) + π N(1, τ²): a channel is either off, or kept at 1.

    Both outcomes are Dirac-like for small τ (reading R2 of the prior of Recursive Bayesian Pruning,
    Zhou et al. 2019; reconstructed, the paper's density could not be read).

    The registered KL(Normal, TwoSpike) is the tightest two-component bound,
    −log[π e^(−KL₁) + (1 − π) e^(−KL₀)] ≥ KL, with KL₀ and KL₁ the KLs to the two spikes; it is
    reached at the assignment that :func:`responsibility` returns.

    Args:
        pi: prior probability that a channel is kept, in (0, 1).
        tau: standard deviation of both spikes.

    Raises:
        ConfigError: π outside (0, 1) or τ ≤ 0, given as numbers.
    """

    def __init__(self, pi: Tensor | float = 0.5, tau: Tensor | float = 0.1, validate_args: Any = None) -> None:
        if isinstance(pi, float | int) and not 0 < pi < 1:
            raise ConfigError(f"pi, the probability of keeping a channel, must lie in (0, 1), got {pi}")
        if isinstance(tau, float | int) and not tau > 0:
            raise ConfigError(f"tau, the width of the spikes, must be positive, got {tau}; 0.05 to 0.1 is usual")
        pi, tau = broadcast_all(pi, tau)
        super().__init__(pi, torch.zeros_like(tau), tau, torch.ones_like(tau), tau, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalPair:
        return super().expand(batch_shape, self._get_checked_instance(TwoSpike, _instance))


def component_kls(q: Normal, p: NormalPair) -> tuple[Tensor, Tensor]:
    """KL(q‖first component), KL(q‖second component)."""
    first = Normal(p.loc0, p.scale0, validate_args=False)
    second = Normal(p.loc1, p.scale1, validate_args=False)
    return kl_divergence(q, first), kl_divergence(q, second)


def responsibility(q: Normal, p: NormalPair) -> Tensor:
    """Share r = sigmoid(logit π + KL₀ − KL₁) of the second component: an inclusion probability.

    It minimises r KL₁ + (1 − r) KL₀ + KL(Bernoulli(r)‖Bernoulli(π)). Prune where r < ½.

    >>> responsibility(Normal(torch.tensor([0.0, 1.0]), 0.1), TwoSpike(0.5, 0.1)).round().tolist()
    [0.0, 1.0]
    """
    off, on = component_kls(q, p)
    return torch.sigmoid(p.mix.logit() + off - on)
