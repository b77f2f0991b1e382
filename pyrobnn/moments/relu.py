"""Moments of a rectified Gaussian variable, in one fused pass over memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.moments.gaussian import _FLOOR, _INV_SQRT_2PI, _STEEPEST

_LOG2_E = math.log2(math.e)
_LOG2_INV_SQRT_2PI = math.log2(_INV_SQRT_2PI)
# Work in pieces that fit a core's cache: one fused pass over memory instead of a dozen.
_CHUNK = 1 << 16
# In fp32 a unit this many deviations below 0 is off for certain: squares and products of its mean, 2e-13 deviations, and of densities
# below the other bound are denormal, on which a CPU is up to a hundred times slower.
_DEAD = -7.0
_LOG2_NIL = -80.0


def _wide_type(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _pieces(
    given: Sequence[Tensor], made: Sequence[Tensor], scratch: int
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Pieces of what is given and made, all in one dense layout, and room to calculate; in fp32 where they are narrower.

    What is in a piece of `made` when the next one is asked for is kept.
    """
    wide, order, first = _wide_type(given[0]), _order(given[0]), len(given)
    flats = [x.permute(tuple(order)).reshape(-1) for x in (*given, *made)]
    n = flats[0].numel()
    size = min(_CHUNK, n) if given[0].device.type == "cpu" else n
    room = [flats[0].new_empty(size, dtype=wide) for _ in range(scratch)]
    casts = [None if flat.dtype == wide else flat.new_empty(size, dtype=wide) for flat in flats]
    for lo in range(0, n, size or 1):
        real = [flat[lo : lo + size] for flat in flats]
        count = real[0].numel()
        used = [piece if cast is None else cast[:count] for piece, cast in zip(real, casts, strict=True)]
        for piece, cast in zip(real[:first], used[:first], strict=True):
            if cast is not piece:
                cast.copy_(piece)
        yield used[:first], used[first:], [free[:count] for free in room]
        for piece, cast in zip(real[first:], used[first:], strict=True):
            if cast is not piece:
                piece.copy_(cast)


def _relu_forward(mean: Tensor, variance: Tensor, keep: bool) -> tuple[Tensor, ...]:
    """Mean, variance and (if ``keep``) Φ(a) and φ(a)/s of a rectified Gaussian, for one dense layout.

    Written for speed on CPU, where exp2 and gelu are a third and a half of the price of exp and erf:
    gelu(a) = aΦ(a) gives Φ(a) by division, with 1e-20 added to a against 0/0.
    """
    found = [torch.empty_like(mean) for _ in range(4 if keep else 2)]
    single = _wide_type(mean) == torch.float32
    tiny, log_norm = (mean.new_tensor(x, dtype=_wide_type(mean)) for x in (1e-20, _LOG2_INV_SQRT_2PI))
    for (mu, v), outs, (inv, a, g, *more) in _pieces((mean, variance), found, 3 if keep else 5):
        m_out, v_out, cdf, ratio = (*outs, *more)
        torch.clamp_min(v, _FLOOR, out=inv).rsqrt_()
        torch.addcmul(tiny, mu, inv, out=a)
        if single:
            torch.threshold_(a, _DEAD, -40.0)
        torch._C._nn.gelu(a, out=g)  # type: ignore[call-arg]
        torch.div(g, a, out=cdf)
        torch.addcmul(log_norm, a, a, value=-0.5 * _LOG2_E, out=ratio)
        if single:
            ratio.clamp_min_(_LOG2_NIL).exp2_().sub_(2.0**_LOG2_NIL)  # φ(a)
        else:
            ratio.exp2_()
        g.add_(ratio)  # m = aΦ + φ
        torch.div(g, inv, out=m_out)
        a.sub_(g)  # −h, h = m − a = φ − a(1 − Φ)
        torch.addcmul(cdf, a, g, out=v_out).mul_(v).clamp_min_(0)
        if keep:
            ratio.mul_(inv.clamp_max_(_STEEPEST))
    return tuple(found)


class _ReluMoments(torch.autograd.Function):
    """See :func:`relu_moments`. Mean and variance share one dense layout here."""

    @staticmethod
    def forward(mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        return _relu_forward(mean, variance, keep=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        out_mean, _, cdf, ratio = output
        ctx.save_for_backward(out_mean, cdf, ratio)
        ctx.of_variance = inputs[1].dtype
        ctx.mark_non_differentiable(cdf, ratio)

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_variance: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        # dm'/dμ = Φ, dm'/dv = φ/2s, dv'/dμ = 2m'(1 − Φ), dv'/dv = Φ − m'φ/s
        out_mean, cdf, ratio = ctx.saved_tensors
        d_mean, d_variance = torch.empty_like(out_mean), torch.empty_like(out_mean, dtype=ctx.of_variance)
        for (m, c, r, gm, gv), (dm, dv), (t,) in _pieces(
            (out_mean, cdf, ratio, *(_alike(g, out_mean) for g in (g_mean, g_variance))), (d_mean, d_variance), 1
        ):
            torch.mul(gv, m, out=t)  # gv m'
            torch.sub(gm, t, alpha=2, out=dm)  # gm − 2 gv m'
            torch.mul(dm, r, out=dv).mul_(0.5)  # (gm/2 − gv m') φ/s
            dv.addcmul_(gv, c)
            dm.mul_(c).add_(t, alpha=2)  # Φ(gm − 2 gv m') + 2 gv m'
        return d_mean, d_variance


def _order(x: Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest in memory."""
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda d: (-strides[d], d))


def _alike(x: Tensor, like: Tensor) -> Tensor:
    """In the layout of another one."""
    return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)


def relu_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(x, 0) for x ~ N(mean, variance), exact.

    With a = μ/√v: E = √v (aΦ(a) + φ(a)), Var = v (Φ − h m) with h = φ − a(1 − Φ), m = a + h; the latter
    equals E[x²; x>0] − E² and does not cancel for large a.

    Args:
        mean: any shape, fp32 or fp64, or bfloat16, for which fp32 is calculated with.
        variance: same shape.

    Returns:
        mean and variance, same shape, both of the type of the mean. Gradients are analytic (first order only).

    Example:
        >>> m, v = relu_moments(torch.zeros(1), torch.ones(1))
        >>> round(m.item(), 4), round(v.item(), 4)      # 1/sqrt(2 pi), 1/2 - 1/(2 pi)
        (0.3989, 0.3408)
    """
    mean = _dense(mean)
    variance = _alike(variance, mean)
    graph = torch.is_grad_enabled() and (mean.requires_grad or variance.requires_grad)
    found = _ReluMoments.apply(mean, variance) if graph else _relu_forward(mean, variance, keep=False)
    return found[0], found[1]


def _dense(x: Tensor) -> Tensor:
    """Non-overlapping and without gaps, whatever the order of dimensions."""
    expected = 1
    for d in reversed(_order(x)):
        if x.shape[d] > 1 and x.stride(d) != expected:
            return x.contiguous()
        expected *= x.shape[d]
    return x
