"""Full covariances through operations without weights (see :mod:`pyrobnn.moments.full`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.moments.full import FullMoments, full, full_rule
from pyrobnn.moments.gaussian import _hermite, normal_cdf, quadrature_moments
from pyrobnn.moments.options import current_options
from pyrobnn.moments.registry import ops
from pyrobnn.moments.relu import relu_moments
from pyrobnn.moments.tensor import Moments, is_weight
from pyrobnn.moments.variances import square, wide

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


@full_rule(*ops("relu"))
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

        full_rule(*ops(name))(smooth)


_enter_smooth()


@full_rule(F.softmax, torch.softmax, torch.Tensor.softmax)
def _softmax(input: Any, dim: int, dtype: Any = None, **_: Any) -> Any:
    """p = softmax(μ), J Σ J' with J = diag(p) − pp'."""
    if input._loc.dim() != 2 or dim not in (1, -1) or input.blocks.shape[1] != 1:
        return NotImplemented
    p = F.softmax(wide(input._loc), -1)
    jacobian = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return full(p if dtype is None else p.to(dtype), (jacobian @ input.blocks[:, 0] @ jacobian.mT).unsqueeze(1))


# Pooling, normalisation, movements


@full_rule(*ops("max_pool2d"), F.max_pool2d_with_indices)
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


@full_rule(*ops("avg_pool2d"))
def _avg_pool(input: Any, *args: Any, **kwargs: Any) -> Any:
    return _averaged(input, lambda t: F.avg_pool2d(t, *args, **kwargs))


@full_rule(*ops("adaptive_avg_pool2d"))
def _adaptive_avg_pool(input: Any, output_size: Any) -> Any:
    return _averaged(input, lambda t: F.adaptive_avg_pool2d(t, output_size))


@full_rule(F.batch_norm)
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


@full_rule(*ops("dropout"))
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

        full_rule(func)(view)


_enter_views()


@full_rule(*ops("add"), torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.__iadd__)
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


@full_rule(*ops("mul"), torch.Tensor.__mul__, torch.Tensor.__rmul__, torch.Tensor.__imul__)
def _mul(input: Any, other: Any) -> Any:
    if isinstance(other, Tensor):
        return NotImplemented
    return full(input._loc * other, input.blocks * float(other) ** 2)


@full_rule(torch.Tensor.float, torch.Tensor.contiguous, torch.clone, torch.Tensor.clone)
def _same(input: Any, *args: Any, **kwargs: Any) -> Any:
    return full(input._loc.clone(), input.blocks)
