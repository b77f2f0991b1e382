"""Moments of functions of a Gaussian variable: pure functions of mean and variance tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-24  # below this variance a Gaussian is treated as a constant
_STEEPEST = 1e6  # bound on 1/s in gradients: dm'/dv = φ/2s is infinite for a constant at the kink
_INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)
_LOG2_E = math.log2(math.e)
_LOG2_INV_SQRT_2PI = math.log2(_INV_SQRT_2PI)
# Work in pieces that fit a core's cache: one fused pass over memory instead of a dozen.
_CHUNK = 1 << 16


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x). (``torch.special.ndtr`` is not vectorised on CPU.)"""
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def normal_pdf(x: Tensor) -> Tensor:
    """φ(x)."""
    return _INV_SQRT_2PI * torch.exp(-0.5 * x.square())


def _flat(x: Tensor, order: Sequence[int]) -> Tensor:
    return x.permute(tuple(order)).reshape(-1)


def _relu_forward(mean: Tensor, variance: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance and (if ``keep``) Φ(a) and φ(a)/s of a rectified Gaussian, for one dense layout.

    Written for speed on CPU, where exp2 and gelu are a third and a half of the price of exp and erf:
    gelu(a) = aΦ(a) gives Φ(a) by division, with 1e-20 added to a against 0/0.
    """
    out_mean, out_variance = torch.empty_like(mean), torch.empty_like(mean)
    order = _order(mean)
    flats = [_flat(t, order) for t in (mean, variance, out_mean, out_variance)]
    n = flats[0].numel()
    size = min(_CHUNK, n)
    kept = [torch.empty_like(mean) if keep else mean.new_empty(0) for _ in range(2)]
    flats += [_flat(t, order) if keep else mean.new_empty(size) for t in kept]
    buffers = [mean.new_empty(size) for _ in range(3)]
    tiny, log_norm = mean.new_tensor(1e-20), mean.new_tensor(_LOG2_INV_SQRT_2PI)
    for lo in range(0, n, _CHUNK):
        mu, v, m_out, v_out = (t[lo : lo + _CHUNK] for t in flats[:4])
        here = slice(lo, lo + _CHUNK) if keep else slice(0, mu.numel())
        cdf, ratio = (t[here] for t in flats[4:])
        inv, a, g = (b[: mu.numel()] for b in buffers)
        torch.clamp_min(v, _FLOOR, out=inv).rsqrt_()
        torch.addcmul(tiny, mu, inv, out=a)
        torch._C._nn.gelu(a, out=g)  # type: ignore[call-arg]
        torch.div(g, a, out=cdf)
        torch.addcmul(log_norm, a, a, value=-0.5 * _LOG2_E, out=ratio).exp2_()  # φ(a)
        g.add_(ratio)  # m = aΦ + φ
        torch.div(g, inv, out=m_out)
        a.sub_(g)  # −h, h = m − a = φ − a(1 − Φ)
        torch.addcmul(cdf, a, g, out=v_out).mul_(v).clamp_min_(0)
        if keep:
            ratio.mul_(inv.clamp_max_(_STEEPEST))
    return out_mean, out_variance, kept[0], kept[1]


class _ReluMoments(torch.autograd.Function):
    """See :func:`relu_moments`. Mean and variance share one dense layout here."""

    @staticmethod
    def forward(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _relu_forward(mean, variance, keep=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        out_mean, _, cdf, ratio = output
        ctx.save_for_backward(out_mean, cdf, ratio)
        ctx.mark_non_differentiable(cdf, ratio)

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_variance: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        # dm'/dμ = Φ, dm'/dv = φ/2s, dv'/dμ = 2m'(1 − Φ), dv'/dv = Φ − m'φ/s
        out_mean, cdf, ratio = ctx.saved_tensors
        order = _order(out_mean)
        d_mean, d_variance = torch.empty_like(out_mean), torch.empty_like(out_mean)
        flats = [_flat(t, order) for t in (out_mean, cdf, ratio, g_mean, g_variance, d_mean, d_variance)]
        n = flats[0].numel()
        buffer = out_mean.new_empty(min(_CHUNK, n))
        for lo in range(0, n, _CHUNK):
            m, c, r, gm, gv, dm, dv = (t[lo : lo + _CHUNK] for t in flats)
            t = torch.mul(gv, m, out=buffer[: m.numel()])  # gv m'
            torch.sub(gm, t, alpha=2, out=dm)  # gm − 2 gv m'
            torch.mul(dm, r, out=dv).mul_(0.5)  # (gm/2 − gv m') φ/s
            dv.addcmul_(gv, c)
            dm.mul_(c).add_(t, alpha=2)  # Φ(gm − 2 gv m') + 2 gv m'
        return d_mean, d_variance


def _order(x: Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest in memory."""
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda d: (-strides[d], d))


def relu_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(x, 0) for x ~ N(mean, variance), exact.

    With a = μ/√v: E = √v (aΦ(a) + φ(a)), Var = v (Φ − h m) with h = φ − a(1 − Φ), m = a + h; the latter
    equals E[x²; x>0] − E² and does not cancel for large a.

    Args:
        mean: any shape, fp32 or fp64.
        variance: same shape.

    Returns:
        mean and variance, same shape. Gradients are analytic (first order only).

    Example:
        >>> m, v = relu_moments(torch.zeros(1), torch.ones(1))
        >>> round(m.item(), 4), round(v.item(), 4)      # 1/sqrt(2 pi), 1/2 - 1/(2 pi)
        (0.3989, 0.3408)
    """
    mean = _dense(mean)
    if variance.stride() != mean.stride():
        variance = torch.empty_like(mean).copy_(variance)
    if torch.is_grad_enabled() and (mean.requires_grad or variance.requires_grad):
        out_mean, out_variance, _, _ = _ReluMoments.apply(mean, variance)
    else:
        out_mean, out_variance, _, _ = _relu_forward(mean, variance, keep=False)
    return out_mean, out_variance


def _dense(x: Tensor) -> Tensor:
    """Non-overlapping and without gaps, whatever the order of dimensions."""
    expected = 1
    for d in reversed(_order(x)):
        if x.shape[d] > 1 and x.stride(d) != expected:
            return x.contiguous()
        expected *= x.shape[d]
    return x


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
