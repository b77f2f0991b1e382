"""Expected magnitudes of a Gaussian: the folded normal, and the same with a cap.

Both are homogeneous of degree one in (loc, scale, cap), so by Euler's theorem each is the sum of its
arguments times its partial derivatives. Written that way, with the derivatives taken as constants, value
and first derivatives are exact and autograd has nothing else to keep; second derivatives are not available.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrobnn.distributions.stable import log_phi


def _phi(z: Tensor) -> Tensor:
    return log_phi(z).exp()


def expected_abs(loc: Tensor, scale: Tensor) -> Tensor:
    """E|w| of w ~ N(loc, scale²), the mean of the folded normal; |loc| where the scale is 0.

    σ · 2φ(μ/σ) + μ · erf(μ / σ√2).

    >>> round(float(expected_abs(torch.tensor(0.0), torch.tensor(1.0))), 4)   # √(2/π)
    0.7979
    """
    with torch.no_grad():
        z = loc / scale.clamp_min(1e-12)
        by_loc, by_scale = torch.erf(z / math.sqrt(2)), 2 * _phi(z)
    return loc * by_loc + scale * by_scale


def expected_capped(loc: Tensor, scale: Tensor, cap: Tensor | float) -> Tensor:
    """E min(|w|, cap) of w ~ N(loc, scale²); min(|loc|, cap) where the scale is 0.

    The integral of min(|w|, c) over both sides, each a truncated first moment and a tail:
    σ · [2φ(μ/σ) − φ(a) − φ(b)] + μ · [Φ(a) − Φ(b) + 2Φ(μ/σ) − 1] + c · [2 − Φ(a) − Φ(b)],
    a = (c − μ)/σ, b = (c + μ)/σ.
    """
    with torch.no_grad():
        positive = scale.clamp_min(1e-12)
        z, a, b = loc / positive, (cap - loc) / positive, (cap + loc) / positive
        upper, lower = torch.special.ndtr(a), torch.special.ndtr(b)
        by_loc = upper - lower + torch.erf(z / math.sqrt(2))
        by_scale = 2 * _phi(z) - _phi(a) - _phi(b)
        by_cap = 2 - upper - lower
    return loc * by_loc + scale * by_scale + cap * by_cap
