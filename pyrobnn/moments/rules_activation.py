"""Elementwise activations.

ReLU and the other piecewise polynomials (leaky ReLU, ReLU6, hard tanh / sigmoid / swish, abs, clamp) have
exact Gaussian moments; smooth ones (GELU, SiLU, tanh, sigmoid, ELU, SELU, CELU, softplus, Mish, exp, sin,
cos) go through Gauss-Hermite quadrature. Both can be switched to first order: f(μ), f'(μ)² v
(:func:`~pyrobnn.moments.moment_options`). Inputs count as Gaussian. ELU, SELU and CELU have a kink in a
derivative at 0, where quadrature with 10 nodes is good to about 1 % of the standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.moments.gaussian import piecewise_moments, quadrature_moments
from pyrobnn.moments.options import current_options
from pyrobnn.moments.registry import ops, rule
from pyrobnn.moments.relu import relu_moments
from pyrobnn.moments.tensor import Moments, activation, held_parts
from pyrobnn.moments.variances import wide


def _first_order(f: Callable[[Tensor], Tensor], x: Moments) -> Moments:
    """f(μ) and f'(μ)² v; the slope comes from autograd and stays differentiable when gradients are on."""
    graph = torch.is_grad_enabled() and x._loc.requires_grad
    with torch.enable_grad():
        mu = wide(x._loc) if graph else wide(x._loc).detach().requires_grad_()
        mu = mu.view_as(mu)  # a node of its own, whose gradient is the elementwise slope
        value = f(mu)
        (slope,) = torch.autograd.grad(value.sum(), mu, create_graph=graph)
    if not graph:
        value = value.detach()
    return activation(value.to(x._loc.dtype), slope.square() * x._variance)


def _piecewise(
    x: Moments, f: Callable[[Tensor], Tensor], breaks: Sequence[float], pieces: Sequence[Sequence[float]]
) -> Moments:
    if current_options().relu == "first_order":
        return _first_order(f, x)
    mean, variance = piecewise_moments(wide(x._loc), x._variance, breaks, pieces)
    return activation(mean.to(x._loc.dtype), variance)


def smooth(x: Moments, f: Callable[[Tensor], Tensor]) -> Moments:
    """Moments of a smooth function of a Gaussian, by Gauss-Hermite quadrature or to first order (`moment_options`)."""
    options = current_options()
    if options.smooth == "first_order":
        return _first_order(f, x)
    mean, variance = quadrature_moments(f, wide(x._loc), x._variance, options.nodes)
    return activation(mean.to(x._loc.dtype), variance)


@rule(*ops("relu"))
def _relu(input: Any) -> Any:
    mu, v = held_parts(input)
    assert v is not None
    if current_options().relu == "first_order":
        return activation(F.relu(mu), torch.where(mu > 0, v, 0.0))
    if mu.dtype == torch.float16:  # squares overflow
        mean, variance = relu_moments(mu.float(), v)
        return activation(mean.to(mu.dtype), variance)
    mean, variance = relu_moments(mu, v)
    return activation(mean, variance)


@rule(*ops("leaky_relu"))
def _leaky_relu(input: Any, negative_slope: float = 0.01) -> Any:
    slope = negative_slope
    return _piecewise(input, lambda x: F.leaky_relu(x, slope), [0.0], [[0, slope], [0, 1]])


@rule(*ops("relu6"))
def _relu6(input: Any) -> Any:
    return _hardtanh(input, 0.0, 6.0)


@rule(*ops("hardtanh"))
def _hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    return _clamp(input, min_val, max_val)


@rule(*ops("clamp", "clip"))
def _clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    if isinstance(min, Tensor) or isinstance(max, Tensor) or (min is None and max is None):
        return NotImplemented
    breaks: list[float] = []
    pieces: list[list[float]] = [[0, 1]]
    if min is not None:
        breaks, pieces = [float(min)], [[float(min)], [0, 1]]
    if max is not None:
        breaks, pieces = [*breaks, float(max)], [*pieces, [float(max)]]
    return _piecewise(input, lambda x: torch.clamp(x, min, max), breaks, pieces)


@rule(*ops("clamp_min"))
def _clamp_min(input: Any, min: Any) -> Any:
    return _clamp(input, min=min)


@rule(*ops("clamp_max"))
def _clamp_max(input: Any, max: Any) -> Any:
    return _clamp(input, max=max)


@rule(*ops("hardsigmoid"))
def _hardsigmoid(input: Any) -> Any:
    return _piecewise(input, F.hardsigmoid, [-3.0, 3.0], [[0], [0.5, 1 / 6], [1]])


@rule(*ops("hardswish"))
def _hardswish(input: Any) -> Any:
    return _piecewise(input, F.hardswish, [-3.0, 3.0], [[0], [0, 0.5, 1 / 6], [0, 1]])


@rule(*ops("abs", "absolute"), torch.Tensor.__abs__)
def _abs(input: Any) -> Any:
    return _piecewise(input, torch.abs, [0.0], [[0, -1], [0, 1]])


@rule(*ops("prelu"))
def _prelu(input: Any, weight: Any) -> Any:
    """Slopes a per channel: a x + (1 − a) relu(x), with Cov(x, relu) = E[x²; x>0] − μ E[relu]."""
    if not isinstance(input, Moments) or isinstance(weight, Moments):
        return NotImplemented
    slope = weight.view(1, -1, *([1] * (input._loc.dim() - 2))) if weight.numel() > 1 else weight
    mu, v = wide(input._loc), input._variance
    mean, variance = relu_moments(mu, v)
    # Cov(x, relu(x)) = v Φ(μ/√v)
    covariance = v * 0.5 * (1 + torch.erf(mu / (2 * v.clamp_min(1e-24)).sqrt()))
    rest = 1 - slope
    total = slope.square() * v + rest.square() * variance + 2 * slope * rest * covariance
    return activation((slope * mu + rest * mean).to(input._loc.dtype), total)


def _enter_smooth() -> None:
    for name in (
        "tanh",
        "sigmoid",
        "softplus",
        "mish",
        "selu",
        "elu",
        "celu",
        "silu",
        "gelu",
        "exp",
        "sin",
        "cos",
        "softsign",
        "logsigmoid",
        "tanhshrink",
        "log1p",
        "erf",
    ):
        home = F if hasattr(F, name) and name not in ("tanh", "sigmoid") else torch
        base = getattr(home, name)

        def apply(input: Any, *args: Any, _base: Callable[..., Any] = base, **kwargs: Any) -> Any:
            return smooth(input, lambda x: _base(x, *args, **kwargs))

        rule(*ops(name))(apply)


_enter_smooth()
