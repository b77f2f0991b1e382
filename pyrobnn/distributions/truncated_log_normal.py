"""The log-normal truncated on the log scale: the noise posterior of Structured Bayesian Pruning."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from pyrobnn.distributions.stable import (
    HALF_LOG_2PI_E,
    log_diff_ndtr,
    log_ndtri,
    log_phi,
    truncated_hazards,
    wide,
)
from pyrobnn.errors import ConfigError

DEEP = 1e4  # standard deviations outside [a, b] from which log θ is treated as exponential (error 1e-8)


class TruncatedLogNormal(TorchDistribution):
    """log θ ~ N(loc, scale²) truncated to [a, b] (Neklyudov et al. 2017, eq. 12-16).

    All probabilities are float64 logarithms of Φ, so loc may lie far outside [a, b] and scale may
    be tiny; results come back in the dtype of the parameters.

    Args:
        loc: μ, mean of log θ before truncation.
        scale: σ > 0, its standard deviation before truncation.
        a: lower end on the log scale.
        b: upper end on the log scale.

    Raises:
        ConfigError: a ≥ b.

    >>> noise = TruncatedLogNormal(torch.tensor(0.0), torch.tensor(0.1))
    >>> bool(noise.snr > 10), round(noise.mean.item(), 3)
    (True, 0.925)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        a: float = -20.0,
        b: float = 0.0,
        validate_args: Any = None,
    ) -> None:
        if not a < b:
            raise ConfigError(f"TruncatedLogNormal needs a < b on the log scale, got {a} and {b}; usual: -20, 0")
        self.loc, self.scale = broadcast_all(loc, scale)
        self.a, self.b = float(a), float(b)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        return constraints.interval(math.exp(self.a), math.exp(self.b))

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedLogNormal:
        new: TruncatedLogNormal = self._get_checked_instance(TruncatedLogNormal, _instance)
        new.a, new.b = self.a, self.b
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        super(TruncatedLogNormal, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _standard(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """μ, σ, α = (a − μ)/σ and β = (b − μ)/σ in float64."""
        loc, scale = wide(self.loc), wide(self.scale)
        return loc, scale, (self.a - loc) / scale, (self.b - loc) / scale

    def _back(self, value: Tensor) -> Tensor:
        return value.to(self.loc.device, self.loc.dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws by inversion; gradients by implicit differentiation of the truncated CDF."""
        shape = self._extended_shape(sample_shape)
        loc, scale, alpha, beta = self._standard()
        with torch.no_grad():
            # Work in the half-line where log Φ is accurate; the mirrored interval is the same problem.
            flip = alpha + beta > 0
            left, right = torch.where(flip, -beta, alpha), torch.where(flip, -alpha, beta)
            uniform = wide(torch.rand(shape, device=self.loc.device)).clamp(1e-7, 1 - 1e-7)
            log_mass = log_diff_ndtr(left, right)
            log_cdf = torch.logaddexp(torch.special.log_ndtr(left), uniform.log() + log_mass)
            x = log_ndtri(log_cdf.clamp_max(-1e-300))
            x = torch.minimum(torch.maximum(x, left), right)
            x = torch.where(flip, -x, x)
            # u = F(x) is constant along the path: dx = [(1−u) φ(α) dα + u φ(β) dβ] / φ(x).
            below = torch.where(flip, 1 - uniform, uniform)
            d_alpha = ((1 - below).log() + log_phi(alpha) - log_phi(x)).exp()
            d_beta = (below.log() + log_phi(beta) - log_phi(x)).exp()
        x = x + d_alpha * (alpha - alpha.detach()) + d_beta * (beta - beta.detach())
        theta = (loc + scale * x).clamp(self.a, self.b).exp()
        return self._back(theta).clamp(math.exp(self.a), math.exp(self.b))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        loc, scale, alpha, beta = self._standard()
        _, right, flip = self._mirrored()
        log_value = wide(value).log()
        x = (log_value - loc) / scale
        near = log_phi(x) - log_diff_ndtr(alpha, beta)
        # Far outside, −x²/2 and log Z are huge and cancel: measure from the edge where the mass is.
        from_edge = (log_value - torch.where(flip, self.a, self.b).to(x)) / scale
        far = -0.5 * from_edge * (x + torch.where(flip, alpha, beta)) + (-right).clamp_min(DEEP).log()
        log_density = torch.where(right < -DEEP, far, near) - scale.log() - log_value
        return self._back(log_density)

    def log_interval(self, low: Tensor | float, high: Tensor | float) -> Tensor:
        """log P(low < log θ < high) for bounds on the log scale inside [a, b]; float64."""
        loc, scale, alpha, beta = self._standard()
        return log_diff_ndtr((low - loc) / scale, (high - loc) / scale) - log_diff_ndtr(alpha, beta)

    def _mirrored(self) -> tuple[Tensor, Tensor, Tensor]:
        """The interval [α, β] turned so that it lies to the left (l + r ≤ 0), and whether it was turned.

        −r > 0 is then how many standard deviations outside the interval μ lies.
        """
        _, _, alpha, beta = self._standard()
        flip = alpha + beta > 0
        return torch.where(flip, -beta, alpha), torch.where(flip, -alpha, beta), flip

    def entropy_log(self) -> Tensor:
        """Entropy of log θ in nats, float64: ½log 2πe + log σ + log Z + (αφ(α) − βφ(β)) / 2Z.

        Far outside the interval log θ is exponential with rate |r| / σ, of entropy 1 + log(σ / |r|).
        """
        left, right, _ = self._mirrored()
        log_scale = wide(self.scale).log()
        deep = right < -DEEP
        low, high = left.clamp_min(-1e6), right.clamp_min(-DEEP)
        at_low, at_high = truncated_hazards(low, high)
        near = HALF_LOG_2PI_E + log_diff_ndtr(low, high) + 0.5 * (low * at_low - high * at_high)
        return log_scale + torch.where(deep, 1 - (-right).clamp_min(DEEP).log(), near)

    def _log_moment(self, k: int) -> Tensor:
        """log E θᵏ, float64."""
        loc, scale, alpha, beta = self._standard()
        _, right, flip = self._mirrored()
        deep = right < -DEEP
        # Every unselected branch is kept finite, or its gradient would be NaN.
        a, b = alpha.clamp(-1e6, DEEP), beta.clamp(-DEEP, 1e6)
        shift = k * scale
        near = k * loc + 0.5 * shift.square() + log_diff_ndtr(a - shift, b - shift) - log_diff_ndtr(a, b)
        decay = scale / (-right).clamp_min(DEEP)
        at_b = k * self.b - torch.log1p(k * decay)
        at_a = k * self.a - torch.log1p(-(k * decay).clamp_max(0.5))
        return torch.where(deep, torch.where(flip, at_a, at_b), near)

    def _relative_variance(self) -> Tensor:
        """Var θ / (E θ)², float64.

        For a narrow log θ, log E θ² − 2 log E θ is all rounding. There it is s² = Var log θ to first
        order, and s² / (1 ± 2s) where log θ is exponential.
        """
        left, right, flip = self._mirrored()
        scale = wide(self.scale)
        exact = torch.expm1(self._log_moment(2) - 2 * self._log_moment(1))
        tail = (right < -50) & ((left - right) * right > 40)
        low, high = left.clamp_min(-1e6), right.clamp_min(-50.0)
        at_low, at_high = truncated_hazards(low, high)
        unit = 1 + low * at_low - high * at_high - (at_low - at_high).square()
        c2 = right.clamp_max(-50.0).pow(-2)  # variance of the standard normal beyond c: 1/c² − 6/c⁴ + 50/c⁶
        unit = torch.where(tail, c2 * (1 - 6 * c2 + 50 * c2.square()), unit)
        spread = scale * unit.clamp_min(0.0).sqrt()
        sign = torch.where(flip, -2.0, 2.0).to(spread)
        narrow = spread.square() / torch.where(tail, 1 + sign * spread.clamp_max(0.1), torch.ones_like(spread))
        return torch.where(spread < torch.where(tail, 3e-3, 1e-4), narrow, exact).clamp_min(1e-38)

    @property
    def mean(self) -> Tensor:
        return self._back(self._log_moment(1).exp().clamp(math.exp(self.a), math.exp(self.b)))

    @property
    def variance(self) -> Tensor:
        return self._back(self._relative_variance() * (2 * self._log_moment(1)).exp())

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio E θ / sd θ; the published rule keeps channels above 1."""
        return self._back(self._relative_variance().rsqrt())
