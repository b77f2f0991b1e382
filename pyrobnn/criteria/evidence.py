"""Evidence rules: would the data be more probable if a unit's prior were reduced to "off"?

All functions return ΔF, the log evidence of the reduced model minus that of the full one, by Bayesian
model reduction: ΔF = log E_q[p̃(θ) / p(θ)], exact if q is the posterior. Prune where ΔF ≥ 0; no threshold
is tuned. Work and results are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.criterion import Criterion
from pyrobnn.distributions import TruncatedLogNormal
from pyrobnn.distributions.stable import HALF_LOG_2PI, log_diff_ndtr, wide
from pyrobnn.errors import ConfigError
from pyrobnn.inference.pricing import PricedKL
from pyrobnn.summary.types import Posterior


def bmrs_n(
    loc: Tensor,
    scale: Tensor,
    a: float = -20.0,
    b: float = 0.0,
    *,
    reduced_loc: float | None = None,
    reduced_scale: float = 1e-6,
) -> Tensor:
    """BMRS_N: noise with a log-uniform prior, reduced to a narrow Gaussian at "off" (Wright et al. 2024).

    With q: log θ ~ N(μ, σ²), prior Uniform[a, b] and reduced prior N(m, s²), all truncated to [a, b],

        ΔF = log(b − a) + log Z_q̃ − log Z_q − log Z_p̃ + log N(μ; m, σ² + s²),

    where q̃ = N(μ̃, σ̃²) is the normalised product of the two Gaussians. The last term contains the
    −½ log 2π that the authors' released code omits (which makes its ΔF 0.919 nat too large), and writing
    the product this way avoids the difference of two terms of size m²/s² ≈ 4e14.

    Args:
        loc: μ of log θ before truncation.
        scale: σ of log θ before truncation.
        a: lower end of log θ.
        b: upper end of log θ.
        reduced_loc: m; default a.
        reduced_scale: s; 1e-6 is the published σ̃_p² = 1e-12.

    Returns:
        ΔF in nats, float64, in the shape of `loc`.

    Raises:
        ConfigError: a ≥ b or reduced_scale ≤ 0.
    """
    _check_interval(a, b)
    if not reduced_scale > 0:
        raise ConfigError(f"reduced_scale must be positive, got {reduced_scale}; 1e-6 is the published value")
    mu, sigma = wide(loc), wide(scale)
    m, s = (a if reduced_loc is None else reduced_loc), reduced_scale
    total = sigma.square() + s * s
    product_scale = sigma * s / total.sqrt()
    product_shift = (mu - m) * s * s / total  # μ̃ − m
    log_zq = log_diff_ndtr((a - mu) / sigma, (b - mu) / sigma)
    ends = torch.tensor([(a - m) / s, (b - m) / s], dtype=torch.float64)
    log_zp = log_diff_ndtr(ends[0], ends[1]).to(mu.device)
    log_zr = log_diff_ndtr(((a - m) - product_shift) / product_scale, ((b - m) - product_shift) / product_scale)
    log_overlap = -HALF_LOG_2PI - 0.5 * total.log() - 0.5 * (mu - m).square() / total
    return math.log(b - a) + log_zr - log_zq - log_zp + log_overlap


def bmrs_u(loc: Tensor, scale: Tensor, a: float = -20.0, b: float = 0.0, *, bits: float = 8.0) -> Tensor:
    """BMRS_U: noise with a log-uniform prior, reduced to values too small to matter (Wright et al. 2024).

    The reduced prior is uniform on log θ ∈ [log 2⁻²³, log 2^(−bits)] (what a float32 mantissa resolves,
    up to the chosen precision), so ΔF = log q(interval) − log(its share of [a, b]).

    Args:
        loc: μ of log θ before truncation.
        scale: σ of log θ before truncation.
        a: lower end of log θ.
        b: upper end of log θ.
        bits: 8 is the published default; 4 prunes more.

    Returns:
        ΔF in nats, float64, in the shape of `loc`.

    Raises:
        ConfigError: a ≥ b, or an interval that is empty within [a, b].
    """
    _check_interval(a, b)
    low, high = max(-23 * math.log(2), a), min(-bits * math.log(2), b)
    if not low < high:
        raise ConfigError(f"bits must leave an interval below 23 bits inside [{a}, {b}], got {bits}; 8 is usual")
    mu, sigma = wide(loc), wide(scale)
    log_inside = log_diff_ndtr((low - mu) / sigma, (high - mu) / sigma)
    log_all = log_diff_ndtr((a - mu) / sigma, (b - mu) / sigma)
    return log_inside - log_all - math.log((high - low) / (b - a))


def _reduced(scoring: ScoringContext, name: str, delta: Callable[[Tensor, Tensor, float, float], Tensor]) -> Posterior:
    """−ΔF of every channel's log-uniform noise, at the weight 1 of the KL whatever it was fitted with."""
    guide, posterior = scoring.need("guide", name), scoring.posterior
    price = next((callback for callback in scoring.callbacks if isinstance(callback, PricedKL)), None)
    channels = {}
    for group, summary in posterior.channels.items():
        noise = guide.posterior(f"{group}.noise") if hasattr(guide, "posterior") else None
        if not isinstance(noise, TruncatedLogNormal):
            raise ConfigError(
                f"{name} compares evidence under a log-uniform prior, and group {group!r} has none: use sbp"
            )
        # A KL that counts w times makes noise √w times as wide as the ELBO would.
        weight = 1.0 if price is None else price.kl_weight * price.weights.get(group, 1.0)
        change = delta(noise.loc.detach(), noise.scale.detach() / weight**0.5, noise.a, noise.b)
        channels[group] = replace(summary, evidence=-change.cpu().float())
    return replace(posterior, channels=channels)


BMRS_N = Criterion(
    "bmrs-n", "−ΔF (BMRS_N)", "nats", lambda scoring: _reduced(scoring, "bmrs-n", bmrs_n), 0.0, "evidence"
)
BMRS_U = Criterion(
    "bmrs-u", "−ΔF (BMRS_U)", "nats", lambda scoring: _reduced(scoring, "bmrs-u", bmrs_u), 0.0, "evidence"
)


def _check_interval(a: float, b: float) -> None:
    if not a < b:
        raise ConfigError(f"the range of log θ needs a < b, got {a} and {b}; usual: -20, 0")
