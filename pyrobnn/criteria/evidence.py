"""Evidence rules: would the data be more probable if a unit's prior were reduced to "off"?

All functions return ΔF, the log evidence of the reduced model minus that of the full one, by Bayesian
model reduction: ΔF = log E_q[p̃(θ) / p(θ)], exact if q is the posterior. Prune where ΔF ≥ 0; no threshold
is tuned. Work and results are float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrobnn.distributions.stable import HALF_LOG_2PI, log_diff_ndtr, wide
from pyrobnn.errors import ConfigError

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelGroup


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


def savage_dickey(loc: Tensor, scale: Tensor, prior_scale: Tensor | float) -> Tensor:
    """log q(0) − log p(0) for q = N(loc, scale²), p = N(0, prior_scale²): the limit of a prior at exactly 0.

    ΔF = log(prior_scale / scale) − loc² / (2 scale²), elementwise.

    Returns:
        ΔF in nats, float64, in the shape of `loc`.

    >>> savage_dickey(torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.1]), 1.0) > 0
    tensor([ True, False])
    """
    prior = wide(prior_scale) if isinstance(prior_scale, Tensor) else torch.tensor(prior_scale, dtype=torch.float64)
    mu, sigma = wide(loc), wide(scale)
    return prior.to(mu.device).log() - sigma.log() - 0.5 * (mu / sigma).square()


def group_savage_dickey(
    group: ChannelGroup,
    moments: Mapping[str, tuple[Tensor, Tensor]],
    prior_scale: Mapping[str, Tensor | float],
) -> Tensor:
    """ΔF of setting all weights that produce a channel to zero, for a Gaussian mean-field posterior.

    The sum of :func:`savage_dickey` over the group's producer rows.

    Args:
        group: one entry of the channel table.
        moments: `{tensor name: (mean, sd)}`, as `Guide.moments()` returns.
        prior_scale: prior standard deviation per tensor name.

    Returns:
        ΔF in nats, float64, shape `[channels]`.

    Raises:
        ConfigError: no producer of the group has a posterior.
    """
    total = torch.zeros(group.channels, dtype=torch.float64)
    found = False
    for member in group.members:
        if member.role != "out" or member.tensor not in moments:
            continue
        found = True
        mean, sd = moments[member.tensor]
        delta = savage_dickey(mean, sd, prior_scale[member.tensor])
        rows = delta.movedim(member.axis, 0).flatten(1).sum(1) if delta.dim() > 1 else delta
        rows = torch.cat([rows, rows.new_zeros(1)])  # position −1 pads ragged rows
        total = total.to(rows.device) + rows[member.index.to(rows.device)].sum(1)
    if not found:
        raise ConfigError(f"no producer of group {group.name!r} has a posterior: make its weights random")
    return total


def _check_interval(a: float, b: float) -> None:
    if not a < b:
        raise ConfigError(f"the range of log θ needs a < b, got {a} and {b}; usual: -20, 0")
