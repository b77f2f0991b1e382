"""Normal probabilities that are accurate far in the tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
HALF_LOG_2PI_E = HALF_LOG_2PI + 0.5


def wide(x: Tensor) -> Tensor:
    """`x` in float64; on a device without float64 (MPS) the work moves to the CPU."""
    return x.to("cpu", torch.float64) if x.device.type == "mps" else x.to(torch.float64)


def log_phi(x: Tensor) -> Tensor:
    """Log density of the standard normal."""
    return -0.5 * x.square() - HALF_LOG_2PI


def log_diff_ndtr(low: Tensor, high: Tensor) -> Tensor:
    """log(Φ(high) − Φ(low)) for low < high, without cancellation in either tail.

    An interval in the upper half is mirrored to the lower one, where log Φ is accurate.

    >>> low = torch.tensor(30.0, dtype=torch.float64)
    >>> round(log_diff_ndtr(low, low + 1).item(), 4)  # Φ(−30) = 4.9e-198
    -454.3212
    """
    flip = low + high > 0
    left, right = torch.where(flip, -high, low), torch.where(flip, -low, high)
    top = torch.special.log_ndtr(right)
    return top + torch.log(-torch.expm1(torch.special.log_ndtr(left) - top))


def truncated_hazards(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """φ(low)/Z and φ(high)/Z with Z = Φ(high) − Φ(low), for low + high ≤ 0.

    φ/Φ is √(2/π) / erfcx, exact to rounding in the tail, where exp(log φ − log Φ) loses digits.
    """
    mills = math.sqrt(2 / math.pi) / torch.special.erfcx(-high / math.sqrt(2))
    ratio = torch.special.log_ndtr(low) - torch.special.log_ndtr(high)
    at_high = mills / -torch.expm1(ratio)
    return at_high * (0.5 * (high - low) * (high + low)).exp(), at_high


def log_ndtri(log_p: Tensor) -> Tensor:
    """x with log Φ(x) = log_p, for log_p < 0 down to any depth (no gradient).

    `ndtri` underflows below log_p = −745; there three Newton steps on log Φ start from the tail
    expansion x² ≈ −2 log_p − log(2π) − log(−2 log_p).

    >>> x = log_ndtri(torch.tensor([-1.0, -5000.0], dtype=torch.float64))
    >>> torch.special.log_ndtr(x).round(decimals=6).tolist()
    [-1.0, -5000.0]
    """
    with torch.no_grad():
        deep = log_p < -600.0
        x = torch.special.ndtri(log_p.clamp_min(-600.0).exp())
        t = -2.0 * log_p.clamp_max(-600.0)
        tail = -(t - 2 * HALF_LOG_2PI - t.log()).sqrt()
        for _ in range(3):
            log_cdf = torch.special.log_ndtr(tail)
            tail = tail - (log_cdf + 0.5 * t) * (log_cdf - log_phi(tail)).exp()
        return torch.where(deep, tail, x)
