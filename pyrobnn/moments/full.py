"""Moments with a full covariance per map: the published form of extended VI, for small networks.

An activation carries the covariance of all positions inside a map; maps count as independent of each
other, and the units of a linear layer have a full covariance. Two forms
(:func:`~pyrobnn.moments.moment_options`, ``covariance=``):

* ``"full"``: the exact three terms at each convolution, M'ΣM + tr(σ²Σ) + μ'σ²μ, for independent weights
  and independent maps. A nonlinearity keeps its exact variances; off the diagonal
  Cov(f(x), f(y)) = E[f'(x)] E[f'(y)] Cov(x, y), the leading term of the Hermite series.
* ``"published"``: as in the code of Dera et al. (Variational Density Propagation): a later convolution sees
  only the *diagonal* of its input's covariance in the terms M'ΣM and tr(σ²Σ), and nonlinearities are
  linearised at the mean. (Average pooling is not in that code; it takes the covariance as it is.)

Memory grows with the square of the map: B·C·(H·W)² numbers. Larger maps are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.errors import NetError
from pyrobnn.moments.gaussian import _hermite, normal_cdf, quadrature_moments, relu_moments
from pyrobnn.moments.options import current_options
from pyrobnn.moments.registry import METADATA, _where, ops
from pyrobnn.moments.tensor import Moments, _no_dispatch, is_weight, parts
from pyrobnn.moments.variances import full_precision, per_filter, square, wide

LIMIT = 1 << 27  # entries of one covariance (512 MB in fp32)


class FullMoments(Moments):
    """Activations with a covariance per map.

    Attributes:
        loc: means ``[B, C, *S]`` or ``[B, D]``.
        blocks: ``[B, G, n, n]`` with G·n numbers per example: one block per map of n positions, or a single
            block for the units of a linear layer. Entries of different blocks are independent.
    """

    blocks: Tensor

    @property
    def covariance(self) -> Tensor:
        """Covariance of all entries of an example, ``[B, D, D]``."""
        if self.blocks.shape[1] == 1:
            return self.blocks[:, 0]
        rows = [torch.block_diag(*example) for example in self.blocks]
        return torch.stack(rows)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with _no_dispatch():
            return _dispatch(func, args, {} if kwargs is None else dict(kwargs))


def full(loc: Tensor, blocks: Tensor) -> FullMoments:
    """An activation from its means and covariance blocks."""
    new: FullMoments = torch.Tensor._make_wrapper_subclass(FullMoments, loc.shape, dtype=loc.dtype, device=loc.device)
    plain = Moments(loc, blocks.diagonal(dim1=-2, dim2=-1).reshape(loc.shape))
    new._loc, new._held, new.reading, new.sources = loc, plain._variance, "moments", ()
    new._replay, new._sample, new._store, new._seen = None, None, plain._store, 0
    new.blocks = blocks
    return new


def _check_size(batch: int, groups: int, entries: int) -> None:
    if batch * groups * entries**2 > LIMIT:
        raise NetError(
            f"moments: a full covariance of {groups} maps of {entries} positions for {batch} examples takes "
            f"{batch * groups * entries**2:.1e} numbers (limit {LIMIT:.1e}): use covariance='diagonal', smaller "
            "maps or smaller batches."
        )


_RULES: dict[Any, Callable[..., Any]] = {}


def _rule(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def enter(apply: Callable[..., Any]) -> Callable[..., Any]:
        _RULES.update(dict.fromkeys(functions, apply))
        return apply

    return enter


def _dispatch(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func in METADATA:
        return func(args[0]._loc, *args[1:], **kwargs)
    apply = _RULES.get(func)
    inplace = bool(kwargs.pop("inplace", False)) or (
        func.__name__.endswith("_") and not func.__name__.endswith("__")
    )
    result = NotImplemented if apply is None else apply(*args, **kwargs)
    if result is NotImplemented:
        raise NetError(
            f"moments: no rule carries a full covariance through {_where(func)}; use covariance='diagonal'."
        )
    if inplace and isinstance(args[0], FullMoments):
        target = args[0]
        target._loc, target._held, target.blocks = result._loc, result._held, result.blocks
        return target
    return result


# Layers with weights


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
        _check_size(*rows.shape)
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
    _check_size(len(mean), mean.shape[1], size)
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


@_rule(F.linear)
def _linear_rule(input: Any, weight: Any, bias: Any = None) -> FullMoments:
    return affine(F.linear, input, weight, bias, ())


@_rule(F.conv2d)
def _conv_rule(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> FullMoments:
    return affine(F.conv2d, input, weight, bias, (stride, padding, dilation, groups))


# Nonlinearities


def _through(x: FullMoments, mean: Tensor, slope: Tensor, variance: Tensor | None) -> FullMoments:
    """Slopes on both sides of every block; ``variance`` (if given) on its diagonal."""
    rows = slope.reshape(*x.blocks.shape[:2], -1)
    blocks = x.blocks * rows.unsqueeze(-1) * rows.unsqueeze(-2)
    if variance is not None:
        rest = variance.reshape(rows.shape) - blocks.diagonal(dim1=-2, dim2=-1)
        blocks = blocks + torch.diag_embed(rest)
    return full(mean.to(x._loc.dtype), blocks)


def _linearised(f: Callable[[Tensor], Tensor], x: FullMoments) -> FullMoments:
    graph = torch.is_grad_enabled() and x._loc.requires_grad
    with torch.enable_grad():
        mu = wide(x._loc) if graph else wide(x._loc).detach().requires_grad_()
        mu = mu.view_as(mu)
        value = f(mu)
        (slope,) = torch.autograd.grad(value.sum(), mu, create_graph=graph)
    return _through(x, value if graph else value.detach(), slope, None)


@_rule(*ops("relu"))
def _relu(input: Any) -> Any:
    options = current_options()
    if options.relu == "first_order" or options.covariance == "published":
        return _linearised(F.relu, input)
    mu, v = wide(input._loc), input._variance
    mean, variance = relu_moments(mu, v)
    return _through(input, mean, normal_cdf(mu * v.clamp_min(1e-24).rsqrt()), variance)


def _enter_smooth() -> None:
    for name in ("tanh", "sigmoid", "softplus", "elu", "silu", "gelu"):
        home = F if hasattr(F, name) and name not in ("tanh", "sigmoid") else torch
        base = getattr(home, name)

        def smooth(input: Any, *args: Any, _base: Callable[..., Any] = base, **kwargs: Any) -> Any:
            def f(x: Tensor) -> Tensor:
                result: Tensor = _base(x, *args, **kwargs)
                return result

            options = current_options()
            if options.smooth == "first_order" or options.covariance == "published":
                return _linearised(f, input)
            mu, v = wide(input._loc), input._variance
            mean, variance = quadrature_moments(f, mu, v, options.nodes)
            std = v.clamp_min(1e-12).sqrt()
            slope = torch.zeros_like(mu)
            for z, w in zip(*_hermite(options.nodes), strict=True):  # E f' = E[z f(μ + σz)] / σ (Stein)
                slope = slope + w * z * f(mu + z * std)
            return _through(input, mean, slope / std, variance)

        _rule(*ops(name))(smooth)


_enter_smooth()


@_rule(F.softmax, torch.softmax, torch.Tensor.softmax)
def _softmax(input: Any, dim: int, dtype: Any = None, **_: Any) -> Any:
    """p = softmax(μ), J Σ J' with J = diag(p) − pp'."""
    if input._loc.dim() != 2 or dim not in (1, -1) or input.blocks.shape[1] != 1:
        return NotImplemented
    p = F.softmax(wide(input._loc), -1)
    jacobian = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return full(p if dtype is None else p.to(dtype), (jacobian @ input.blocks[:, 0] @ jacobian.mT).unsqueeze(1))


# Pooling, normalisation, movements


@_rule(*ops("max_pool2d"), F.max_pool2d_with_indices)
def _max_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Rows and columns of the covariance at the largest mean of each window."""
    if current_options().max_pool != "argmax":
        return NotImplemented
    loc, indices = F.max_pool2d(input._loc, kernel_size, stride, padding, dilation, ceil_mode, True)
    at = indices.flatten(2)
    rows = input.blocks.gather(2, at.unsqueeze(-1).expand(-1, -1, -1, input.blocks.shape[-1]))
    blocks = rows.gather(3, at.unsqueeze(2).expand(-1, -1, at.shape[-1], -1))
    return (full(loc, blocks), indices) if return_indices else full(loc, blocks)


def _averaged(input: Any, pool: Callable[[Tensor], Tensor]) -> FullMoments:
    """A Σ A' for the matrix A of a pooling."""
    height, width = input._loc.shape[2:]
    units = torch.eye(height * width, device=input._loc.device).view(-1, 1, height, width)
    matrix = pool(units).flatten(1).mT
    return full(pool(input._loc), matrix @ input.blocks @ matrix.mT)


@_rule(*ops("avg_pool2d"))
def _avg_pool(input: Any, *args: Any, **kwargs: Any) -> Any:
    return _averaged(input, lambda t: F.avg_pool2d(t, *args, **kwargs))


@_rule(*ops("adaptive_avg_pool2d"))
def _adaptive_avg_pool(input: Any, output_size: Any) -> Any:
    return _averaged(input, lambda t: F.adaptive_avg_pool2d(t, output_size))


@_rule(F.batch_norm)
def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Σ γ²/(s² + ε) with the statistics of the mean, which count as constants."""
    if is_weight(weight) or is_weight(bias) or input._loc.dim() != 4:
        return NotImplemented
    mu = input._loc
    loc = F.batch_norm(mu, running_mean, running_var, weight, bias, training, momentum, eps)
    s2 = wide(mu).detach().var((0, 2, 3), correction=0) if training else wide(running_var)
    factor = (s2 + eps).reciprocal() if weight is None else square(weight) / (s2 + eps)
    return full(loc, input.blocks * factor.view(1, -1, 1, 1))


@_rule(*ops("dropout"))
def _dropout(input: Any, p: float = 0.5, training: bool = True) -> Any:
    if not training or p == 0:
        return full(input._loc, input.blocks)
    mask = F.dropout(torch.ones_like(input._loc), p, True)
    return _through(input, input._loc * mask, mask, None)


def _enter_views() -> None:
    for func in (torch.flatten, torch.Tensor.flatten, torch.Tensor.view, torch.Tensor.reshape, torch.reshape):

        def view(input: Any, *args: Any, _func: Callable[..., Any] = func, **kwargs: Any) -> Any:
            loc = _func(input._loc.contiguous(), *args, **kwargs)
            same = len(loc) == len(input._loc) and math.prod(loc.shape[1:]) == math.prod(input._loc.shape[1:])
            return full(loc, input.blocks) if same else NotImplemented

        _rule(func)(view)


_enter_views()


@_rule(*ops("add"), torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.__iadd__)
def _add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    if not isinstance(input, FullMoments):
        input, other = other, input
        if alpha != 1:
            return NotImplemented
    if isinstance(other, FullMoments) and other.blocks.shape == input.blocks.shape:
        return full(input._loc + alpha * other._loc, input.blocks + alpha**2 * other.blocks)
    if isinstance(other, Moments):
        return NotImplemented
    loc = torch.add(input._loc, other, alpha=alpha)
    return full(loc, input.blocks) if loc.shape == input._loc.shape else NotImplemented


@_rule(*ops("mul"), torch.Tensor.__mul__, torch.Tensor.__rmul__, torch.Tensor.__imul__)
def _mul(input: Any, other: Any) -> Any:
    if isinstance(other, Tensor):
        return NotImplemented
    return full(input._loc * other, input.blocks * float(other) ** 2)


@_rule(torch.Tensor.float, torch.Tensor.contiguous, torch.clone, torch.Tensor.clone)
def _same(input: Any, *args: Any, **kwargs: Any) -> Any:
    return full(input._loc.clone(), input.blocks)
