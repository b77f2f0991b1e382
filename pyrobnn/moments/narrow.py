"""Variances of convolutions in bfloat16, in one function with its gradient written out.

    v' = v * (M² + σ²) + μ² * σ²

With one σ² per filter the last term is one convolution of a single channel, Σ_c μ². Products have bfloat16
operands and fp32 sums: each is off by 0.4 % or so (2⁻⁸, less over a sum), which moves the spread of the logits by less
than a hundredth of what the one draw of them that the likelihood takes does. What a step costs on a CPU is how often
whole maps go through memory, so they are kept in two bytes and passed over as rarely as can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyrobnn.moments.local import product_gradients
from pyrobnn.moments.variances import CONV, per_filter, square

_NARROW = torch.bfloat16


def fits(func: Callable[..., Any], mean: Tensor, rest: tuple[Any, ...]) -> bool:
    """Whether :func:`spread` knows the layer: a convolution of a batch in one group, in bfloat16, padded by numbers."""
    return (
        func in CONV
        and mean.dtype == _NARROW
        and mean.dim() == CONV[func] + 2
        and rest[3] == 1
        and not isinstance(rest[1], str)
    )


def spread(
    func: Callable[..., Any],
    mu: Tensor,
    v: Tensor | None,
    m: Tensor,
    s2: Tensor | None,
    b2: Tensor | None,
    rest: tuple[Any, ...],
    scale: Tensor | None,
) -> Tensor:
    """scale · (v * (M² + σ²) + μ² * σ² + σ_b²) in bfloat16, leaving out what is zero; ``scale`` is per filter."""
    rows = [-1, *[1] * (m.dim() - 1)]
    kernel, sigma = square(m), s2
    if s2 is not None and per_filter(func, s2):
        sigma = s2[(slice(None), slice(0, 1))]  # over Σ_c μ²: a channel for all of them
    if scale is not None:
        kernel = kernel * scale.view(rows)
        sigma = None if sigma is None else sigma * scale.view(rows)
        b2 = None if b2 is None else b2 * scale
    if sigma is not None:
        kernel = kernel + sigma
    with torch.autocast(mu.device.type, enabled=False):
        found: Tensor = _Spread.apply(mu, v, kernel, sigma, func, rest)
        return found if b2 is None else found + b2.to(_NARROW).view(rows[:-1])


class _Spread(torch.autograd.Function):
    """v * kernel + μ² * sigma, where sigma has as many channels as μ, or one."""

    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        v: Tensor | None,
        kernel: Tensor,
        sigma: Tensor | None,
        func: Callable[..., Any],
        rest: tuple[Any, ...],
    ) -> Tensor:
        ctx.dtypes = [None if t is None else t.dtype for t in (mu, v, kernel, sigma)]
        x = mu.to(_NARROW)
        u, k, s = (None if t is None else t.to(_NARROW) for t in (v, kernel, sigma))
        terms: list[Tensor] = [] if u is None else [func(u, k, None, *rest)]
        second = None
        if s is not None:
            second = _second(x, s.shape[1])
            terms.append(func(second, s, None, *rest))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, u, k, s, second if s is None or s.shape[1] == 1 else None)
            ctx.func, ctx.rest = func, rest
        return terms[0] if len(terms) == 1 else terms[0].add_(terms[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, u, k, s, second = ctx.saved_tensors
        to_mu, to_v, to_kernel, to_sigma = wanted = ctx.needs_input_grad[:4]
        found: list[Tensor | None] = [None] * 4
        if u is not None and (to_v or to_kernel):
            found[1:3] = product_gradients(ctx.func, ctx.rest, grad, u, k, (to_v, to_kernel, False))[:2]
        if s is not None and (to_mu or to_sigma):
            second = _second(x, s.shape[1]) if second is None else second
            slope, found[3], _ = product_gradients(ctx.func, ctx.rest, grad, second, s, (to_mu, to_sigma, False))
            if slope is not None:  # d Σ_c μ_c² = 2 μ_c
                twos = slope.new_full((slope.shape[1], x.shape[1]), 2.0) if slope.shape[1] < x.shape[1] else None
                found[0] = (slope * 2 if twos is None else _maps(_rows(slope) @ twos, x)).mul_(x)
        cast = (None if g is None or not w else g.to(d) for g, w, d in zip(found, wanted, ctx.dtypes, strict=True))
        return *cast, None, None


def _second(x: Tensor, channels: int) -> Tensor:
    """x², or its sum over channels as one."""
    if channels == x.shape[1]:
        return x * x
    return _maps(_rows(x * x) @ x.new_ones(x.shape[1], 1), x)


def _rows(x: Tensor) -> Tensor:
    """``[positions, channels]``; a view of maps whose channels lie together."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """What :func:`_rows` was made of, with as many channels as there are columns."""
    return rows.view(like.shape[0], *like.shape[2:], -1).movedim(-1, 1)
