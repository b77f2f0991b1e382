"""Pooling.

Max-pooling: the variance at the largest mean ("co-pooling", extended VI), or Clark's moments of a maximum of
independent Gaussians, two at a time (:func:`~pyrobnn.moments.moment_options`).
Average pooling: the variance of an average of independent entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.moments.gaussian import max_moments
from pyrobnn.moments.options import current_options
from pyrobnn.moments.registry import ops, rule
from pyrobnn.moments.tensor import Moments, activation
from pyrobnn.moments.variances import wide

_ABSENT = -1e9  # mean of a padded entry: never the largest, and finite so that gradients are


def _tuple(x: Any, n: int) -> tuple[int, ...]:
    return (int(x),) * n if isinstance(x, int) else tuple(int(i) for i in x) * (n if len(x) == 1 else 1)


def _gather(variance: Tensor, indices: Tensor, dims: int) -> Tensor:
    """Entries of `variance` at flat positions, in the memory order of `indices` (no copy for channels last)."""
    if dims == 2 and indices.dim() == 4 and not indices.is_contiguous():
        rows = [t.permute(0, 2, 3, 1).flatten(1, 2) for t in (variance, indices)]
        shape = (indices.shape[0], *indices.shape[2:], indices.shape[1])
        return rows[0].gather(1, rows[1]).view(shape).permute(0, 3, 1, 2)
    flat = variance.flatten(-dims)
    return flat.gather(-1, indices.flatten(-dims)).view(indices.shape)


def _clark(x: Moments, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, dims: int) -> Moments:
    """Fold the window's entries, pair by pair (a balanced tree), with Clark's formula."""
    mu, v = wide(x._loc), x._variance
    k, p, d = _tuple(kernel, dims), _tuple(padding, dims), _tuple(dilation, dims)
    s = _tuple(k if stride is None or stride == [] else stride, dims)
    pads: list[int] = []
    sizes: list[int] = []
    for i in range(dims):
        n = mu.shape[i - dims]
        room = n + 2 * p[i] - d[i] * (k[i] - 1) - 1
        out = (math.ceil if ceil_mode else math.floor)(room / s[i]) + 1
        if ceil_mode and (out - 1) * s[i] >= n + p[i]:
            out -= 1  # the last window must start inside the input
        sizes.append(out)
        pads = [p[i], max(0, (out - 1) * s[i] + d[i] * (k[i] - 1) + 1 - n - p[i]), *pads]
    if any(pads):
        mu, v = F.pad(mu, pads, value=_ABSENT), F.pad(v, pads)
    entries = []
    for offset in torch.cartesian_prod(*(torch.arange(n) for n in k)).view(-1, dims).tolist():
        window: Any = tuple(slice(o * d[i], o * d[i] + (sizes[i] - 1) * s[i] + 1, s[i]) for i, o in enumerate(offset))
        entries.append((mu[(..., *window)], v[(..., *window)]))
    while len(entries) > 1:
        entries = [
            max_moments(*entries[i : i + 2]) if i + 1 < len(entries) else entries[i] for i in range(0, len(entries), 2)
        ]
    return activation(entries[0][0].to(x._loc.dtype), entries[0][1])


def _enter_max() -> None:
    for dims in (1, 2, 3):
        base = getattr(F, f"max_pool{dims}d")

        def pool(
            input: Any,
            kernel_size: Any,
            stride: Any = None,
            padding: Any = 0,
            dilation: Any = 1,
            ceil_mode: bool = False,
            return_indices: bool = False,
            *,
            _base: Callable[..., Any] = base,
            _dims: int = dims,
        ) -> Any:
            if current_options().max_pool == "clark" and not return_indices:
                return _clark(input, kernel_size, stride, padding, dilation, ceil_mode, _dims)
            loc, indices = _base(input._loc, kernel_size, stride, padding, dilation, ceil_mode, True)
            result = activation(loc, _gather(input._variance, indices, _dims))
            return (result, indices) if return_indices else result

        rule(*ops(f"max_pool{dims}d"), getattr(torch.nn.functional, f"max_pool{dims}d_with_indices"))(pool)

        adaptive = getattr(F, f"adaptive_max_pool{dims}d")

        def adapt(
            input: Any,
            output_size: Any,
            return_indices: bool = False,
            *,
            _base: Callable[..., Any] = adaptive,
            _dims: int = dims,
        ) -> Any:
            if current_options().max_pool == "clark":
                return NotImplemented
            loc, indices = _base(input._loc, output_size, True)
            result = activation(loc, _gather(input._variance, indices, _dims))
            return (result, indices) if return_indices else result

        rule(adaptive, getattr(F, f"adaptive_max_pool{dims}d_with_indices"))(adapt)


_enter_max()


def _share(variance: Tensor, pool: Callable[[Tensor], Tensor], counts: Callable[[Tensor], Tensor]) -> Tensor:
    """pool(v) × (weight of one entry in its window), the weight found on a single map of ones."""
    ones = variance.new_ones((1, 1, *variance.shape[2:]))
    return pool(variance) * (pool(ones) / counts(ones))


def _enter_average() -> None:
    for dims in (1, 2, 3):
        base = getattr(F, f"avg_pool{dims}d")

        def average(
            input: Any,
            kernel_size: Any,
            stride: Any = None,
            padding: Any = 0,
            ceil_mode: bool = False,
            count_include_pad: bool = True,
            divisor_override: int | None = None,
            *,
            _base: Callable[..., Any] = base,
            _dims: int = dims,
        ) -> Any:
            loc, variance = input._loc, input._variance
            k = _tuple(kernel_size, _dims)
            s = _tuple(k if stride is None or stride == [] else stride, _dims)
            p = _tuple(padding, _dims)
            more = () if _dims == 1 else (divisor_override,)

            def pool(t: Tensor) -> Tensor:
                result: Tensor = _base(t, k, s, p, ceil_mode, count_include_pad, *more)
                return result

            if not ceil_mode and not any(p):
                return activation(pool(loc), pool(variance) / (divisor_override or math.prod(k)))
            if _dims == 1:  # F.avg_pool1d cannot override its divisor

                def counts(t: Tensor) -> Tensor:
                    return F.avg_pool2d(t.unsqueeze(-2), (1, *k), (1, *s), (0, *p), ceil_mode, True, 1).squeeze(-2)
            else:

                def counts(t: Tensor) -> Tensor:
                    result: Tensor = _base(t, k, s, p, ceil_mode, True, 1)
                    return result

            unbatched = loc.dim() == _dims + 1
            spread = _share(variance.unsqueeze(0) if unbatched else variance, pool, counts)
            return activation(pool(loc), spread.squeeze(0) if unbatched else spread)

        rule(*ops(f"avg_pool{dims}d"))(average)

        adaptive = getattr(F, f"adaptive_avg_pool{dims}d")

        def adapt(input: Any, output_size: Any, *, _base: Callable[..., Any] = adaptive, _dims: int = dims) -> Any:
            loc = _base(input._loc, output_size)
            share = loc.new_ones((), dtype=input._variance.dtype)
            for i in range(_dims):
                n, out = input._loc.shape[i - _dims], loc.shape[i - _dims]
                edges = torch.arange(out, device=loc.device)
                size = -((edges + 1) * n // -out) - edges * n // out  # ceil(end) − floor(start) of each bin
                share = share / size.view(-1, *([1] * (_dims - 1 - i)))
            return activation(loc, _base(input._variance, output_size) * share)

        rule(*ops(f"adaptive_avg_pool{dims}d"))(adapt)


_enter_average()
