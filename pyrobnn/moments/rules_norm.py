"""Normalisation, dropout, softmax.

Batch norm divides by statistics of the *mean* (those of the batch in training, stored ones in evaluation),
exactly as the plain operation would on the mean, so running statistics move as usual. For the variance these
statistics are those of the mean as well, v' = v γ² / (s² + ε), the published extended-VI treatment plus the
affine part. They move with the kernels in front of them, and gradients follow: without the one through s a
kernel's size, which the normalised mean does not show, would get no gradient from the data at all. Layer and group norm go to first order through their own
statistics (:func:`~pyrobnn.moments.gaussian.standardised_moments`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.moments.gaussian import log_softmax_moments, softmax_jacobian_moments, standardised_moments
from pyrobnn.moments.registry import ops, rule
from pyrobnn.moments.tensor import Moments, activation, deferred, is_weight, parts, plain
from pyrobnn.moments.variances import full_precision, square, wide


class _InverseDeviation(torch.autograd.Function):
    """1 / √(s² + ε) per channel as the operation itself has found it, with its gradient in the input.

    d(s² + ε)^(−½) / dx = −(s² + ε)^(−3/2) (x − m) / M over the M values of a channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(x, mean, inverse)
        return inverse.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, mean, inverse = ctx.saved_tensors
        shape = [1, -1] + [1] * (x.dim() - 2)
        factor = -grads[0] * inverse.pow(3) * (x.shape[1] / x.numel())
        return (x - mean.view(shape)).mul_(factor.view(shape)).to(x.dtype), None, None


def _scale_moments(
    x: Any, normalised: Callable[[Any, Any], Tensor], factor: Tensor, weight: Any, bias: Any, shape: list[int]
) -> Any:
    """γ x̂ + β with x̂ = (x − m)·factor; ``factor``, γ and β are per channel and view as ``shape``."""
    (gamma, g2), (beta, b2) = parts(weight), parts(bias)
    loc = normalised(gamma, beta)
    with full_precision(loc):
        squared = factor.square()
        if gamma is not None:
            squared = squared * (square(gamma) if g2 is None else square(gamma) + g2)
        if g2 is None and b2 is None and isinstance(x, Moments) and x.pending is not None:
            held, outer = x.pending, squared
            return deferred(loc, lambda scale: held(outer if scale is None else outer * scale))
        variance = x._variance * squared.view(shape) if isinstance(x, Moments) else None
        if g2 is not None:  # the random scale acts on the mean of x̂ as well
            spread = square(normalised(None, None)) * g2.view(shape)
            variance = spread if variance is None else variance + spread
        if b2 is not None:
            variance = b2.view(shape) if variance is None else variance + b2.view(shape)
    return loc if variance is None else activation(loc, variance.expand(loc.shape))


def _locals_to_draws(x: Any, *weights: Any) -> tuple[Any, ...]:
    """Scales and shifts next to a plain input are shared by all positions: use their draw when local."""
    if isinstance(x, Moments) and not is_weight(x):
        return (x, *weights)
    return (plain(x), *(plain(w) if is_weight(w) and w.reading == "local" else w for w in weights))


@rule(F.batch_norm, kind="consumer")
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
    input, weight, bias = _locals_to_draws(input, weight, bias)
    (mu, _), (gamma, _g2), (beta, _) = parts(input), parts(weight), parts(bias)
    if not any(isinstance(x, Moments) for x in (input, weight, bias)):
        return F.batch_norm(mu, running_mean, running_var, gamma, beta, training, momentum, eps)
    shape = [1, -1] + [1] * (mu.dim() - 2)
    if training:
        if mu.numel() // mu.shape[1] < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(mu.shape)}")
        first, mean, inverse = torch.native_batch_norm(mu, gamma, beta, running_mean, running_var, True, momentum, eps)
        factor: Tensor = _InverseDeviation.apply(mu, mean.detach(), inverse.detach())

        def normalised(scale: Tensor | None, shift: Tensor | None) -> Tensor:
            if scale is gamma and shift is beta:
                return first
            return F.batch_norm(mu, None, None, scale, shift, True, 0.0, eps)

    else:
        factor = (wide(running_var) + eps).rsqrt()

        def normalised(scale: Tensor | None, shift: Tensor | None) -> Tensor:
            return F.batch_norm(mu, running_mean, running_var, scale, shift, False, momentum, eps)

    return _scale_moments(input, normalised, factor, weight, bias, shape)


def _affine_moments(unit: Tensor, variance: Tensor, weight: Any, bias: Any, shape: list[int], dtype: Any) -> Moments:
    """γ x̂ + β, everything independent."""
    (gamma, g2), (beta, b2) = parts(weight), parts(bias)
    if gamma is not None:
        squared = square(gamma).view(shape)
        if g2 is not None:
            variance = variance * (squared + g2.view(shape)) + unit.square() * g2.view(shape)
        else:
            variance = variance * squared
        unit = unit * wide(gamma).view(shape)
    if beta is not None:
        unit = unit + wide(beta).view(shape)
        variance = variance if b2 is None else variance + b2.view(shape)
    return activation(unit.to(dtype), variance)


@rule(F.layer_norm, kind="consumer")
def _layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    input, weight, bias = _locals_to_draws(input, weight, bias)
    if not any(isinstance(x, Moments) for x in (input, weight, bias)):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    loc, variance = parts(input)
    with full_precision(loc):
        mu = wide(loc)
        variance = torch.zeros_like(mu) if variance is None else variance
        unit, spread = standardised_moments(mu, variance, range(-len(normalized_shape), 0), eps)
        return _affine_moments(unit, spread, weight, bias, list(normalized_shape), loc.dtype)


@rule(F.group_norm, kind="consumer")
def _group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    input, weight, bias = _locals_to_draws(input, weight, bias)
    if not any(isinstance(x, Moments) for x in (input, weight, bias)):
        return F.group_norm(input, num_groups, weight, bias, eps)
    loc, variance = parts(input)
    with full_precision(loc):
        mu = wide(loc)
        variance = torch.zeros_like(mu) if variance is None else variance
        rows = (mu.shape[0], num_groups, -1)
        grouped = standardised_moments(mu.reshape(rows), variance.reshape(rows), (-1,), eps)
        unit, spread = (t.view(mu.shape) for t in grouped)
        return _affine_moments(unit, spread, weight, bias, [1, -1] + [1] * (mu.dim() - 2), loc.dtype)


def _enter_dropout() -> None:
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"):
        base = getattr(F, name, None) or getattr(torch, name)

        def drop(input: Any, p: float = 0.5, training: bool = True, *, _base: Callable[..., Any] = base) -> Any:
            """In training one mask for mean and variance: mean·m/(1−p), variance·(m/(1−p))²."""
            if not training or p == 0:
                return activation(input._loc, input._variance)
            mask = _base(torch.ones_like(input._loc), p, True)
            return activation(input._loc * mask, input._variance * mask.square())

        rule(*ops(name))(drop)


_enter_dropout()


@rule(F.softmax, torch.softmax, torch.Tensor.softmax)
def _softmax(input: Any, dim: int, dtype: Any = None, **_: Any) -> Any:
    loc, variance = softmax_jacobian_moments(wide(input._loc), input._variance, dim)
    return activation(loc if dtype is None else loc.to(dtype), variance)


@rule(F.log_softmax, torch.log_softmax, torch.Tensor.log_softmax)
def _log_softmax(input: Any, dim: int, dtype: Any = None, **_: Any) -> Any:
    loc, variance = log_softmax_moments(wide(input._loc), input._variance, dim)
    return activation(loc if dtype is None else loc.to(dtype), variance)
