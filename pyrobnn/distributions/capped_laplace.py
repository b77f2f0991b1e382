"""The Laplace density with a capped part: the L1 and capped-L1 penalty as a prior."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all


class CappedLaplace(TorchDistribution):
    """p(w) ∝ exp(−[(1 − κ)|w| + κ min(|w|, cap)] / scale).

    Its negative logarithm is the combined L1 and capped-L1 norm: slope 1/scale up to the cap, slope
    (1 − κ)/scale beyond, so that large weights are shrunk less. κ = 0 is Laplace(0, scale).

    Args:
        scale: of the inner part, positive.
        cap: where the slope falls, positive.
        mix: κ in [0, 1); at 1 the density could not be normalised.

    >>> p = CappedLaplace(torch.tensor(1.0), torch.tensor(2.0), 0.0)
    >>> round(float(p.log_prob(torch.tensor(0.0)).exp()), 6)   # Laplace: 1 / 2
    0.5
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "scale": constraints.positive,
        "cap": constraints.positive,
        "mix": constraints.half_open_interval(0.0, 1.0),
    }
    support = constraints.real
    has_rsample = True

    def __init__(
        self, scale: Tensor | float, cap: Tensor | float, mix: Tensor | float = 0.5, validate_args: Any = None
    ) -> None:
        self.scale, self.cap, self.mix = broadcast_all(scale, cap, mix)
        super().__init__(self.scale.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CappedLaplace:
        new: CappedLaplace = self._get_checked_instance(CappedLaplace, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(CappedLaplace, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def outside(self) -> Tensor:
        """Probability of |w| beyond the cap."""
        tail = torch.exp(-self.cap / self.scale) / (1 - self.mix)
        return tail / (-torch.expm1(-self.cap / self.scale) + tail)

    @property
    def log_normaliser(self) -> Tensor:
        """log of the integral of the unnormalised density: log 2·scale·[1 − e^(−c/s) + e^(−c/s)/(1 − κ)]."""
        decay = torch.exp(-self.cap / self.scale)
        return math.log(2) + self.scale.log() + torch.log1p(decay * self.mix / (1 - self.mix))

    def penalty(self, magnitude: Tensor, capped: Tensor) -> Tensor:
        """The energy of |w| and min(|w|, cap), or its mean for their means (it is linear in both)."""
        return ((1 - self.mix) * magnitude + self.mix * capped) / self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        magnitude = value.abs()
        return -self.penalty(magnitude, torch.minimum(magnitude, self.cap)) - self.log_normaliser

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.scale.dtype, device=self.scale.device)
        sign = torch.where(torch.rand_like(uniform) < 0.5, -1.0, 1.0)
        tail = self.outside
        # Inverse of the survival function of |w|, piece by piece.
        tiny = torch.finfo(uniform.dtype).tiny
        beyond = self.cap - self.scale / (1 - self.mix) * torch.log((uniform / tail).clamp(tiny, 1.0))
        share = ((1 - uniform) / (1 - tail)).clamp(0.0, 1.0)
        within = -self.scale * torch.log1p(share * torch.expm1(-self.cap / self.scale))
        return sign * torch.where(uniform < tail, beyond, within)

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.scale)

    @property
    def variance(self) -> Tensor:
        """2s² within the cap (truncated exponential), and the shifted exponential beyond it."""
        s, c, t = self.scale, self.cap, self.scale / (1 - self.mix)
        decay = torch.exp(-c / s)
        within = (2 * s.square() - decay * (c.square() + 2 * c * s + 2 * s.square())) / (-torch.expm1(-c / s))
        beyond = c.square() + 2 * c * t + 2 * t.square()
        return (1 - self.outside) * within + self.outside * beyond
