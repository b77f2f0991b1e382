"""Full covariances through convolutions and linear layers (see :mod:`pyrobnn.moments.full`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.errors import NetError
from pyrobnn.moments.full import FullMoments, check_size, full, full_rule
from pyrobnn.moments.options import current_options
from pyrobnn.moments.tensor import Moments, parts
from pyrobnn.moments.variances import full_precision, per_filter, square, wide


def affine(func: Callable[..., Any], x: Any, weight: Any, bias: Any, rest: tuple[Any, ...]) -> FullMoments:
    """A convolution or linear layer; its input is certain, or carries (diagonal or full) moments."""
    if func is F.linear:
        return _linear(x, weight, bias)
    if func is F.conv2d and (len(rest) < 4 or rest[3] == 1):
        return _convolution(x, weight, bias, rest)
    name = "a grouped convolution" if func is F.conv2d else func.__name__
    raise NetError(f"moments: {name} has no full-covariance rule; use covariance='diagonal'.")


def _blocks(x: Any, groups: int) -> Tensor | None:
    """The covariance of an input, as blocks; None if it is certain."""
    if isinstance(x, FullMoments):
        return x.blocks
    if isinstance(x, Moments):
        rows = x._variance.reshape(len(x._loc), groups, -1)
        check_size(*rows.shape)
        return torch.diag_embed(rows)
    return None


def _linear(x: Any, weight: Any, bias: Any) -> FullMoments:
    (mu, v), (m, s2), (b, b2) = parts(x), parts(weight), parts(bias)
    if mu.dim() != 2:
        raise NetError(f"moments: a full covariance goes through linear layers of [B, D], got {tuple(mu.shape)}.")
    mean = F.linear(mu, m, b)
    units = m.shape[0]
    with full_precision(mean):
        blocks, wide_m = _blocks(x, 1), wide(m)
        if blocks is None:
            covariance = mean.new_zeros((len(mu), units, units), dtype=torch.float32)
        else:
            rows = wide_m.view(units, *blocks.shape[1:3])
            covariance = torch.einsum("bgin,jgn->bij", torch.einsum("ign,bgnm->bgim", rows, blocks), rows)
        spread = 0.0 if b2 is None else b2.expand(mean.shape)
        if s2 is not None:
            second = square(mu) if v is None else square(mu) + v
            spread = spread + F.linear(second, s2)
        if isinstance(spread, Tensor):
            covariance = covariance + torch.diag_embed(spread)
    return full(mean, covariance.unsqueeze(1))


def _convolution(x: Any, weight: Any, bias: Any, rest: tuple[Any, ...]) -> FullMoments:
    (mu, v), (m, s2), (b, b2) = parts(x), parts(weight), parts(bias)
    if mu.dim() != 4:
        raise NetError(f"moments: a full covariance needs a batch of images [B, C, H, W], got {tuple(mu.shape)}.")
    mean = F.conv2d(mu, m, b, *rest)
    size = mean.shape[2] * mean.shape[3]
    check_size(len(mean), mean.shape[1], size)
    exact = current_options().covariance == "full"
    with full_precision(mean):
        blocks, m = _blocks(x, mu.shape[1]), wide(m)
        total = mean.new_zeros((len(mean), mean.shape[1], size, size), dtype=torch.float32)
        if s2 is not None:
            total = total + _outer(F.unfold(wide(mu), m.shape[2:], *_unfolding(rest)), s2)
        if blocks is not None and exact:
            total = total + _both_sides(blocks, mu.shape, m, rest)
            if s2 is not None:
                total = total + _shifted(blocks, mu.shape, s2, rest)
        elif v is not None:
            part = F.conv2d(v, square(m), None, *rest)
            if s2 is not None:
                part = part + F.conv2d(v, s2, None, *rest)
            total = total + torch.diag_embed(part.flatten(2))
        if b2 is not None:  # one bias for all positions: they move together
            total = total + b2.view(1, -1, 1, 1)
    return full(mean, total)


def _unfolding(rest: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """(dilation, padding, stride), as ``F.unfold`` takes them."""
    stride, padding, dilation = rest[:3]
    if isinstance(padding, str):
        raise NetError("moments: padding by name has no full-covariance rule; give it as numbers.")
    return dilation, padding, stride


def _outer(patches: Tensor, s2: Tensor) -> Tensor:
    """X diag(σ²) X': ``[B, taps, P]`` and ``[K, C, h, w]`` to ``[B, K, P, P]``."""
    rows = s2.flatten(1)
    if per_filter(F.conv2d, s2):
        return (patches.mT @ patches).unsqueeze(1) * rows[:, 0].view(1, -1, 1, 1)
    return torch.stack([(patches * row.unsqueeze(-1)).mT @ patches for row in rows], 1)


def _both_sides(blocks: Tensor, shape: torch.Size, m: Tensor, rest: tuple[Any, ...]) -> Tensor:
    """Σ_c M_kc Σ_c M_kc': the kernel applied to the rows, then to the columns of every block."""
    batch, channels, height, width = shape
    filters = m.shape[0]
    kernels = m.transpose(0, 1).reshape(channels * filters, 1, *m.shape[2:])
    maps = blocks.permute(0, 2, 1, 3).reshape(-1, channels, height, width)
    stride, padding, dilation = rest[:3]
    once = F.conv2d(maps, kernels, None, stride, padding, dilation, channels)  # [B·P, C·K, h, w], columns done
    new = once.shape[2] * once.shape[3]
    once = once.view(batch, height * width, channels * filters, new).permute(0, 3, 2, 1)
    once = once.reshape(batch * new, channels * filters, height, width)
    twice: Tensor = F.conv2d(once, kernels, None, stride, padding, dilation, channels * filters)
    return twice.view(batch, new, channels, filters, new).sum(2).permute(0, 2, 1, 3)


def _shifted(blocks: Tensor, shape: torch.Size, s2: Tensor, rest: tuple[Any, ...]) -> Tensor:
    """Σ_{c,t} σ²_kct Σ_c(p + t, q + t): the blocks at the positions that each tap sees."""
    height, width = shape[2:]
    number = torch.arange(1.0, height * width + 1, device=blocks.device).view(1, 1, height, width)
    taps = F.unfold(number, s2.shape[2:], *_unfolding(rest))[0].round().long()  # [taps, P], 0 is padding
    shared = per_filter(F.conv2d, s2)
    padded = F.pad(blocks.sum(1, keepdim=True) if shared else blocks, (1, 0, 1, 0))
    total: Tensor | float = 0.0
    for tap, places in enumerate(taps):
        seen = padded[:, :, places][:, :, :, places]
        total = total + (seen if shared else torch.einsum("kc,bcpq->bkpq", s2.flatten(2)[:, :, tap], seen))
    assert isinstance(total, Tensor)
    return total * s2.flatten(1)[:, 0].view(1, -1, 1, 1) if shared else total


@full_rule(F.linear)
def _linear_rule(input: Any, weight: Any, bias: Any = None) -> FullMoments:
    return affine(F.linear, input, weight, bias, ())


@full_rule(F.conv2d)
def _conv_rule(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> FullMoments:
    return affine(F.conv2d, input, weight, bias, (stride, padding, dilation, groups))
