"""Convolutions, linear layers and matrix products: where weights and activations meet.

Weights read locally: output = conv(x, M) + sqrt(conv(x², σ²)) ε, with independent ε per output entry
(Kingma, Salimans & Welling 2015; for convolutions Molchanov et al. 2017). Both moments of every output
entry are those of a sampled weight.

Moments: with activations (μ, v) and weights (M, σ²), all independent,
    mean      μ * M
    variance  v * (M² + σ²) + μ² * σ²
which is the three-term form of extended VI with diagonal covariances (reconstructed). One variance per
output filter is recognised by its strides; then the σ² terms cost one single-channel convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.moments import full_layers, narrow
from pyrobnn.moments.local import TINY, can_fuse, perturbed, standard_noise
from pyrobnn.moments.options import current_options
from pyrobnn.moments.registry import rule
from pyrobnn.moments.tensor import Moments, activation, deferred, held_parts, is_weight, parts, plain
from pyrobnn.moments.variances import CONV, full_precision, per_filter, square, wide

_TRANSPOSED: dict[Callable[..., Any], int] = {F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3}


class _Perturb(torch.autograd.Function):
    """mean + sqrt(variance) ε, with no gradient to variances at the floor (an all-zero patch)."""

    @staticmethod
    def forward(mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        std = variance.clamp_min(TINY).sqrt_()
        if mean.dtype == std.dtype:
            return torch.addcmul(mean, std, noise)
        return mean + std.mul_(noise).to(mean.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        variance, noise = ctx.saved_tensors
        slope = variance.clamp_min(TINY).rsqrt_().mul_(noise).mul_(0.5)
        slope.masked_fill_(variance <= TINY, 0.0)
        return grad, slope.mul_(grad), None


def _affine(
    func: Callable[..., Any],
    x: Any,
    weight: Any,
    bias: Any,
    rest: tuple[Any, ...],
    shape: Callable[[Tensor], Tensor],
) -> Any:
    """Any layer ``func(x, weight, bias, *rest)`` that is linear in x and in the weight.

    ``shape`` views a per-filter vector so that it broadcasts against the output.
    """
    x = plain(x)  # a weight used as an input: its draw
    local = not isinstance(x, Moments) and all(w.reading == "local" for w in (weight, bias) if isinstance(w, Moments))
    if local and is_weight(weight) and not all(source.first_use() for source in weight.sources):
        weight = weight.sample_weight()  # independent noise at each use would cut the link between them
    if local and not isinstance(weight, Moments):
        return func(x, weight, plain(bias), *rest)
    if not local and current_options().covariance != "diagonal":
        return full_layers.affine(func, x, weight, bias, rest)
    (mu, v), (m, s2), (b, b2) = parts(x), parts(weight), parts(bias)
    if local and s2 is not None and can_fuse(func, mu, rest) and not per_filter(func, s2):
        return perturbed(func, mu, m, s2, b, b2, rest, weight.sources[0].generator)
    mean = func(mu, m, b, *rest)

    def variance(scale: Tensor | None) -> Tensor:
        if not local and narrow.fits(func, mean, rest):
            return narrow.spread(func, mu, held_parts(x)[1], m, s2, b2, rest, scale)
        with full_precision(mean):
            return _variance(func, mu, v, m, s2, b2, rest, shape, scale, mean).expand(mean.shape)

    if not local:
        return deferred(mean, variance) if func in CONV else activation(mean, variance(None))
    spread = variance(None)
    noise = standard_noise(spread, weight.sources[0].generator)
    return _Perturb.apply(mean, spread, noise)


def _variance(
    func: Callable[..., Any],
    mu: Tensor,
    v: Tensor | None,
    m: Tensor,
    s2: Tensor | None,
    b2: Tensor | None,
    rest: tuple[Any, ...],
    shape: Callable[[Tensor], Tensor],
    scale: Tensor | None,
    like: Tensor,
) -> Tensor:
    """scale · (v * (M² + σ²) + μ² * σ² + σ_b²), leaving out what is zero; ``scale`` is per filter.

    ``like`` has the memory layout that the result should have. Under bfloat16 autocast the products have its operands
    too, and fp32 sums, see :mod:`~pyrobnn.moments.narrow`, which has convolutions of its own.
    """

    def product(x: Tensor, weight: Tensor) -> Tensor:
        if like.dtype != torch.bfloat16:
            return func(x, weight, None, *rest)
        return func(x.to(like.dtype), weight.to(like.dtype), None, *rest).float()

    m2 = square(m)
    if scale is not None:
        rows = scale.view(-1, *([1] * (m.dim() - 1)))
        m2 = m2 * rows
        s2 = None if s2 is None else _times_rows(s2, rows)
        b2 = None if b2 is None else b2 * scale
    if s2 is None:
        terms = [] if v is None else [product(v, m2)]
    elif per_filter(func, s2):
        second = square(mu) if v is None else torch.addcmul(v, wide(mu), wide(mu))
        box, sigma = _filter_spread(func, second, s2, rest)
        if v is None:
            terms = [_outer_product(box, sigma, like)]
        else:  # in place: a product of its own would be another pass, in the layout of one channel
            terms = [product(v, m2).addcmul_(box, sigma)]
    else:
        terms = [] if v is None else [product(v, m2 + s2)]
        terms.append(product(square(mu), s2))
    if b2 is not None:
        terms.append(shape(b2))
    total: Tensor = terms[0]
    for term in terms[1:]:
        total = total.add_(term)  # a fresh output that no backward pass needs
    return total


def _times_rows(s2: Tensor, rows: Tensor) -> Tensor:
    """σ² times a factor per filter; one variance per filter stays expanded."""
    if not any(s2.stride()[1:]):
        return (s2[(slice(None), *[slice(0, 1)] * (s2.dim() - 1))] * rows).expand(s2.shape)
    return s2 * rows


def _filter_spread(
    func: Callable[..., Any], second: Tensor, s2: Tensor, rest: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """second * σ² for one σ² per filter, as two factors: the sum over channels and window, and σ²."""
    sigma = s2.flatten(1)[:, 0]
    if func is F.linear:
        return second.sum(-1, keepdim=True), sigma
    groups = rest[3] if len(rest) > 3 else 1
    batched = second.dim() == CONV[func] + 2
    if not batched:
        second = second.unsqueeze(0)
    total = second.unflatten(1, (groups, -1)).sum(2) if groups > 1 else second.sum(1, keepdim=True)
    ones = s2.new_ones((groups, 1, *s2.shape[2:]))
    box = func(total, ones, None, *rest[:3], groups)
    if groups > 1:
        box = box.repeat_interleave(s2.shape[0] // groups, dim=1)
    return box if batched else box.squeeze(0), sigma.view(-1, *([1] * CONV[func]))


def _outer_product(total: Tensor, sigma: Tensor, like: Tensor) -> Tensor:
    """total · σ², in the layout of ``like``: one channel alone has none."""
    if like.dim() > 2 and like.shape[-1] > 1 and like.stride(1) == 1:
        return (total.movedim(1, -1) * sigma.flatten()).movedim(-1, 1)
    return total * sigma


def _filters_then_space(dims: int) -> Callable[[Tensor], Tensor]:
    return lambda b: b.view(-1, *([1] * dims))


def _enter_convolutions() -> None:
    for func, dims in CONV.items():

        def convolve(
            input: Any,
            weight: Any,
            bias: Any = None,
            stride: Any = 1,
            padding: Any = 0,
            dilation: Any = 1,
            groups: int = 1,
            *,
            _func: Callable[..., Any] = func,
            _dims: int = dims,
        ) -> Any:
            rest = (stride, padding, dilation, groups)
            return _affine(_func, input, weight, bias, rest, _filters_then_space(_dims))

        rule(func, kind="consumer")(convolve)
    for func, dims in _TRANSPOSED.items():

        def convolve_transposed(
            input: Any,
            weight: Any,
            bias: Any = None,
            stride: Any = 1,
            padding: Any = 0,
            output_padding: Any = 0,
            groups: int = 1,
            dilation: Any = 1,
            *,
            _func: Callable[..., Any] = func,
            _dims: int = dims,
        ) -> Any:
            rest = (stride, padding, output_padding, groups, dilation)
            return _affine(_func, input, weight, bias, rest, _filters_then_space(_dims))

        rule(func, kind="consumer")(convolve_transposed)


_enter_convolutions()


@rule(F.linear, kind="consumer")
def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    return _affine(F.linear, input, weight, bias, (), lambda b: b)


def _matmul(a: Any, b: Any, bias: Any, rest: tuple[Any, ...]) -> Any:
    return torch.matmul(a, b)


@rule(
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.mm,
    torch.Tensor.mm,
    torch.bmm,
    torch.Tensor.bmm,
    kind="consumer",
)
def _product(input: Any, other: Any) -> Any:
    """Products of independent factors; a weight on either side is consumed like that of a linear layer."""
    if is_weight(input) and not isinstance(other, Moments):
        return _affine(_swapped_matmul, other, input, None, (), lambda b: b)
    return _affine(_plain_matmul, input, other, None, (), lambda b: b)


def _plain_matmul(x: Tensor, weight: Tensor, bias: None = None) -> Tensor:
    return torch.matmul(x, weight)


def _swapped_matmul(x: Tensor, weight: Tensor, bias: None = None) -> Tensor:
    return torch.matmul(weight, x)


@rule(torch.Tensor.__rmatmul__, kind="consumer")
def _product_reflected(input: Any, other: Any) -> Any:
    return _product(other, input)


@rule(torch.addmm, torch.Tensor.addmm, kind="consumer")
def _addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if beta != 1 or alpha != 1:
        return NotImplemented
    return _affine(_plain_matmul_bias, mat1, mat2, input, (), lambda b: b)


def _plain_matmul_bias(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.matmul(x, weight) if bias is None else torch.addmm(bias, x, weight)
