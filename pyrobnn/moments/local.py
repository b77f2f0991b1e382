"""Locally reparameterised convolutions and linear layers, in one function with its gradient written out.

    out = x * M + sqrt(x² * σ²) ε

Two products each way are the floor; beside the inputs only one map is kept for the backward pass, ε / sqrt(variance),
and x² is computed again. Under autocast both products run in its dtype: bfloat16 puts the standard deviation of an
output off by 0.2 % or so at the most (2⁻⁹ in each factor, halved by the root), where the noise it scales is of order 1,
and its sums are fp32 in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 15  # entries; a multiple of 16, so that the noise is that of the whole map
TINY = 1e-20  # added to variances that are divided by
DIMS: dict[Callable[..., Any], int] = {F.linear: 0, F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


def standard_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) in the layout of ``like``, filled in memory order (on CPU other orders are ten times slower)."""
    noise = torch.empty_like(like)
    in_memory_order(noise).normal_(generator=generator)
    return noise


def in_memory_order(dense: Tensor) -> Tensor:
    """The entries of a tensor without gaps as they lie in memory, as a vector that shares it."""
    strides = dense.stride()
    order = sorted(range(dense.dim()), key=lambda d: (-strides[d], d))
    return dense.permute(tuple(order)).view(-1)


def can_fuse(func: Callable[..., Any], x: Tensor, rest: tuple[Any, ...]) -> bool:
    """Whether :func:`perturbed` knows the layer: linear, or a convolution of a batch with padding in numbers."""
    if func is F.linear:
        return True
    return func in DIMS and x.dim() == DIMS[func] + 2 and not isinstance(rest[1], str)


def perturbed(
    func: Callable[..., Any],
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    bias: Tensor | None,
    bias_variance: Tensor | None,
    rest: tuple[Any, ...],
    generator: torch.Generator | None,
) -> Tensor:
    """One draw of ``func(x, W, b, *rest)`` for W of this mean and variance, with noise of its own per output entry."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        out: Tensor = _Perturbed.apply(x, mean, variance, bias, bias_variance, func, rest, generator, dtype)
    return out


class _Perturbed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        bias: Tensor | None,
        bias_variance: Tensor | None,
        func: Callable[..., Any],
        rest: tuple[Any, ...],
        generator: torch.Generator | None,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.dtypes = [None if t is None else t.dtype for t in (x, mean, variance, bias, bias_variance)]
        if dtype == torch.float16:  # its squares overflow from 256 on
            dtype = torch.bfloat16
        x, mean, variance = x.to(dtype), mean.to(dtype), variance.to(dtype)
        centre = func(x, mean, None if bias is None else bias.to(dtype), *rest)
        spread = func(x * x, variance, None if bias_variance is None else bias_variance.to(dtype), *rest)
        slope = _add_noise(centre, spread, generator)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, mean, variance, slope)
            ctx.func, ctx.rest = func, rest
        return centre

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mean, variance, slope = ctx.saved_tensors
        grad = grad.to(x.dtype)
        wanted = ctx.needs_input_grad
        through_mean = product_gradients(ctx.func, ctx.rest, grad, x, mean, (wanted[0], wanted[1], wanted[3]))
        varied = (wanted[0], wanted[2], wanted[4])
        through_variance = product_gradients(ctx.func, ctx.rest, grad * slope, x * x, variance, varied)
        to_x = through_mean[0]
        if to_x is not None and through_variance[0] is not None:
            to_x.addcmul_(x, through_variance[0])  # 2 x times half of what twice the slope gives
        to_variance, to_bias_variance = (None if g is None else 0.5 * g for g in through_variance[1:])
        found = (to_x, through_mean[1], to_variance, through_mean[2], to_bias_variance)
        cast = (None if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))
        return *cast, None, None, None, None


def _add_noise(centre: Tensor, spread: Tensor, generator: torch.Generator | None) -> Tensor:
    """Adds sqrt(v) ε to `centre`, in place, for the variances v in `spread`, which are lost; twice the slope, ε / sqrt(v).

    On a CPU in pieces that fit a core's cache: whole maps would go through memory eight times.
    """
    wide_type = torch.float64 if spread.dtype == torch.float64 else torch.float32
    slope = torch.empty_like(spread)
    if centre.device.type != "cpu" or not centre.stride() == spread.stride() == slope.stride():
        pieces = [(centre, spread, slope)]
    else:
        pieces = list(zip(*(in_memory_order(t).split(CHUNK) for t in (centre, spread, slope)), strict=True))
    for mean, variance, out in pieces:
        wide = variance.clamp_min_(0.0).to(wide_type)
        deviation = wide.sqrt().mul_(standard_noise(wide, generator))
        mean.add_(deviation)
        # sqrt(v) ε / v: it is 0 where the variance is (an all-zero patch).
        torch.div(deviation, wide.add_(TINY), out=out)
    return slope


def product_gradients(
    func: Callable[..., Any],
    rest: tuple[Any, ...],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias."""
    if func is F.linear:
        rows = grad.reshape(-1, grad.shape[-1])
        to_x = grad @ weight if wanted[0] else None
        to_weight = rows.T @ x.reshape(-1, x.shape[-1]) if wanted[1] else None
        return to_x, to_weight, rows.sum(0) if wanted[2] else None
    dims = DIMS[func]
    stride, padding, dilation = ([n] * dims if isinstance(n, int) else list(n) for n in rest[:3])
    zeros, bias_sizes = [0] * dims, [weight.shape[0]] if wanted[2] else None
    found: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        grad, x, weight, bias_sizes, stride, padding, dilation, False, zeros, rest[3], list(wanted)
    )
    return found
