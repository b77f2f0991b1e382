"""Moments of functions of a Gaussian variable: pure functions of mean and variance tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-24  # below this variance a Gaussian is treated as a constant
_STEEPEST = 1e6  # bound on 1/s in gradients: dm'/dv = φ/2s is infinite for a constant at the kink
_INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x). (``torch.special.ndtr`` is not vectorised on CPU.)"""
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def normal_pdf(x: Tensor) -> Tensor:
    """φ(x)."""
    return _INV_SQRT_2PI * torch.exp(-0.5 * x.square())


def piecewise_moments(
    mean: Tensor, variance: Tensor, breaks: Sequence[float], pieces: Sequence[Sequence[float]]
) -> tuple[Tensor, Tensor]:
    """Exact mean and variance of a continuous piecewise polynomial of x ~ N(mean, variance).

    Args:
        mean: any shape, fp32 or fp64.
        variance: same shape.
        breaks: ascending break points b_1 < ... < b_k.
        pieces: k + 1 polynomials in x, coefficients from the constant upwards.

    Returns:
        mean and variance. The function is shifted by its value at the mean first, so that a large mean
        does not cancel the variance; the truncated moments of the standard normal follow by recursion,
        I_n = (n−1) I_{n−2} − [z^{n−1} φ(z)].

    Example:
        >>> m, v = piecewise_moments(torch.zeros(1), torch.ones(1), [0.0], [[0, -1], [0, 1]])   # |x|
        >>> round(m.item(), 4), round(v.item(), 4)      # sqrt(2/pi), 1 - 2/pi
        (0.7979, 0.3634)
    """
    std = variance.clamp_min(_FLOOR).sqrt()
    centre = _evaluate(mean, breaks, pieces)
    edges = [(b - mean) / std for b in breaks]
    cdfs = [normal_cdf(e) for e in edges]
    pdfs = [normal_pdf(e) for e in edges]
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for i, coefficients in enumerate(pieces):
        local = _recentred(coefficients, mean, std, centre)
        squared = _times(local, local)
        top = len(squared) - 1
        integrals = _truncated(
            top,
            (edges[i - 1], cdfs[i - 1], pdfs[i - 1]) if i else None,
            (edges[i], cdfs[i], pdfs[i]) if i < len(breaks) else None,
            mean,
        )
        for k, c in enumerate(local):
            first = first + c * integrals[k]
        for k, c in enumerate(squared):
            second = second + c * integrals[k]
    return centre + first, (second - first.square()).clamp_min(0)


def _evaluate(x: Tensor, breaks: Sequence[float], pieces: Sequence[Sequence[float]]) -> Tensor:
    value = _horner(pieces[0], x)
    for b, coefficients in zip(breaks, pieces[1:], strict=True):
        value = torch.where(x >= b, _horner(coefficients, x), value)
    return value


def _horner(coefficients: Sequence[float], x: Tensor) -> Tensor:
    value = torch.zeros_like(x)
    for c in reversed(coefficients):
        value = value * x + c
    return value


def _recentred(coefficients: Sequence[float], mean: Tensor, std: Tensor, centre: Tensor) -> list[Tensor]:
    """Coefficients in z of p(mean + std z) − centre."""
    derivative = list(coefficients)
    result = [_horner(derivative, mean) - centre]
    power, factorial = torch.ones_like(std), 1.0
    for k in range(1, len(coefficients)):
        derivative = [c * (j + 1) for j, c in enumerate(derivative[1:])]
        power, factorial = power * std, factorial * k
        result.append(_horner(derivative, mean) * power / factorial)
    return result


def _times(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    result = [torch.zeros_like(a[0]) for _ in range(len(a) + len(b) - 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i + j] = result[i + j] + x * y
    return result


Edge = tuple[Tensor, Tensor, Tensor]


def _truncated(top: int, low: Edge | None, high: Edge | None, like: Tensor) -> list[Tensor]:
    """E[z^k; low < z < high] for k = 0..top, z standard normal."""

    def boundary(edge: Edge | None, power: int) -> Tensor:  # z^power φ(z), zero at infinity
        if edge is None:
            return torch.zeros_like(like)
        z, _, pdf = edge
        return torch.where(pdf > 0, z.clamp(-20, 20) ** power * pdf, 0.0)

    cdf_high = torch.ones_like(like) if high is None else high[1]
    cdf_low = torch.zeros_like(like) if low is None else low[1]
    integrals = [cdf_high - cdf_low]
    for k in range(1, top + 1):
        integral = boundary(low, k - 1) - boundary(high, k - 1)
        if k >= 2:
            integral = integral + (k - 1) * integrals[k - 2]
        integrals.append(integral)
    return integrals


@lru_cache
def _hermite(nodes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return tuple(x.tolist()), tuple((w / w.sum()).tolist())


def quadrature_moments(
    f: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor, nodes: int
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a smooth f(x), x ~ N(mean, variance), by Gauss-Hermite quadrature.

    Args:
        f: elementwise function.
        mean: any shape, fp32 or fp64.
        variance: same shape.
        nodes: number of nodes; polynomials up to degree 2·nodes − 1 are exact.

    Returns:
        mean and variance; the function is shifted by f(mean), against cancellation.

    Example:
        >>> m, v = quadrature_moments(torch.exp, torch.zeros(1), torch.full((1,), 0.01), 8)
        >>> round(m.item(), 5), round(v.item(), 5)
        (1.00501, 0.01015)
    """
    std = variance.clamp_min(_FLOOR).sqrt()
    centre = f(mean)
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for x, w in zip(*_hermite(nodes), strict=True):
        if x == 0.0:
            continue
        d = f(torch.add(mean, std, alpha=x)) - centre
        first = torch.add(first, d, alpha=w)
        second = second + w * d.square()
    return centre + first, (second - first.square()).clamp_min(0)


def max_moments(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(x, y) for independent Gaussians (Clark, 1961, without correlation).

    Args:
        a: mean and variance of x.
        b: mean and variance of y.

    Returns:
        mean and variance, relative to the larger mean inside, so that large means do not cancel.

    Example:
        >>> m, v = max_moments((torch.zeros(1), torch.ones(1)), (torch.zeros(1), torch.ones(1)))
        >>> round(m.item(), 4), round(v.item(), 4)      # 1/sqrt(pi), 1 - 1/pi
        (0.5642, 0.6817)
    """
    first = a[0] >= b[0]
    high, low = torch.maximum(a[0], b[0]), torch.minimum(a[0], b[0])
    v_high, v_low = torch.where(first, a[1], b[1]), torch.where(first, b[1], a[1])
    d = low - high
    theta = (v_high + v_low).clamp_min(_FLOOR).sqrt()
    ratio = d / theta
    cdf, pdf = normal_cdf(ratio), normal_pdf(ratio)
    shift = d * cdf + theta * pdf
    second = (d.square() + v_low) * cdf + v_high * (1 - cdf) + d * theta * pdf
    return high + shift, (second - shift.square()).clamp_min(0)


def softmax_jacobian_moments(mean: Tensor, variance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """First-order moments of softmax: p = softmax(μ) and the diagonal of J diag(v) Jᵀ, J = diag(p) − ppᵀ."""
    p = F.softmax(mean, dim)
    p2 = p.square()
    total = (p2 * variance).sum(dim, keepdim=True)
    return p, (p2 * ((1 - 2 * p) * variance + total)).clamp_min(0)


def log_softmax_moments(mean: Tensor, variance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Second-order mean log p − ½ Σ p_c(1−p_c) v_c, and first-order variance Σ_c (δ_ic − p_c)² v_c."""
    log_p = F.log_softmax(mean, dim)
    p = log_p.exp()
    bend = (p * (1 - p) * variance).sum(dim, keepdim=True)
    total = (p.square() * variance).sum(dim, keepdim=True)
    return log_p - 0.5 * bend, ((1 - 2 * p) * variance + total).clamp_min(0)


def standardised_moments(mean: Tensor, variance: Tensor, dims: Sequence[int], eps: float) -> tuple[Tensor, Tensor]:
    """Moments of (x − m) / sqrt(s² + ε), with m and s² the mean and variance of x itself along ``dims``.

    The expected s² of the row, Var(μ) + (1 − 1/n) mean(v), divides; the variance is the diagonal of
    J diag(v) Jᵀ with the Jacobian of the normalisation, J_ij = (δ_ij − 1/n − x̂_i x̂_j / n) / s
    (first order; reconstructed).
    """
    n = math.prod(mean.shape[d] for d in dims)
    axes = list(dims)
    centred = mean - mean.mean(axes, keepdim=True)
    total = variance.sum(axes, keepdim=True)
    s2 = centred.square().mean(axes, keepdim=True) + total * ((n - 1) / n**2) + eps
    unit = centred * s2.rsqrt()
    first, second = (unit * variance).sum(axes, keepdim=True), (unit.square() * variance).sum(axes, keepdim=True)
    kept = variance * (1 - (2 / n) * (1 + unit.square()))
    shared = (total + 2 * unit * first + unit.square() * second) / n**2
    return unit, ((kept + shared) / s2).clamp_min(0)
