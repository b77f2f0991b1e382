"""Sums, products and reductions.

Different operands count as independent. A weight that is *broadcast* against something else (a gate over
the taps of a kernel) would give perfectly correlated entries, which a diagonal variance cannot carry: it is
sampled instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrobnn.moments.registry import ops, refuse, rule
from pyrobnn.moments.tensor import Moments, activation, held_parts, is_weight, parts, plain
from pyrobnn.moments.variances import square, wide

_T = torch.Tensor


def _settle(a: Any, b: Any, multiply: bool) -> tuple[Any, Any]:
    """Sample those weights whose entries would not stay independent."""
    if not (is_weight(a) or is_weight(b)):
        return a, b
    if any(isinstance(x, Moments) and x._replay is None for x in (a, b)):
        return a, b  # next to an activation a weight makes activations
    shape = torch.broadcast_shapes(
        *(tuple(x._loc.shape if isinstance(x, Moments) else x.shape) for x in (a, b) if isinstance(x, Tensor))
    )
    a, b = (plain(x) if is_weight(x) and x._loc.shape != shape else x for x in (a, b))
    if is_weight(a) and is_weight(b) and (multiply or set(a.sources) & set(b.sources)):
        b = plain(b)
    return a, b


def _scaled_square(x: Any) -> Any:
    return square(x) if isinstance(x, Tensor) else float(x) ** 2


@rule(*ops("add"), _T.__add__, _T.__radd__, _T.__iadd__, kind="linear")
def _add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    if input is other and isinstance(input, Moments):
        return activation(input._loc * (1 + alpha), input._variance * (1 + alpha) ** 2)
    input, other = _settle(input, other, multiply=False)
    (a, va), (b, vb) = held_parts(input), held_parts(other)
    loc = torch.add(a, b, alpha=alpha)
    if vb is not None and alpha != 1:
        vb = vb * alpha**2
    if va is None and vb is None:
        return loc
    if va is not None and vb is not None:
        return activation(loc, va + vb)
    variance = va if vb is None else vb
    assert variance is not None
    return activation(loc, variance if variance.shape == loc.shape else variance.expand(loc.shape))


@rule(*ops("sub", "subtract"), _T.__sub__, _T.__isub__, kind="linear")
def _sub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return _add(input, other, alpha=-alpha)


@rule(torch.rsub, _T.__rsub__, kind="linear")
def _rsub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    if isinstance(other, Tensor):
        return _add(other, input, alpha=-alpha)
    return _add(_neg(input) if alpha == 1 else _mul(input, -alpha), other)


@rule(*ops("neg", "negative"), _T.__neg__, kind="linear")
def _neg(input: Any) -> Any:
    loc, variance = parts(input)
    return torch.neg(loc) if variance is None else activation(-loc, variance)


@rule(*ops("mul", "multiply"), _T.__mul__, _T.__rmul__, _T.__imul__, kind="linear")
def _mul(input: Any, other: Any) -> Any:
    """E[ab] = E[a]E[b]; Var[ab] = v_a (m_b² + v_b) + m_a² v_b."""
    if input is other and isinstance(input, Moments):
        return NotImplemented if is_weight(input) else _square(input)
    input, other = _settle(input, other, multiply=True)
    (a, va), (b, vb) = parts(input), parts(other)
    loc = a * b
    if va is None and vb is None:
        return loc
    if va is None:
        assert vb is not None
        a, va, b, vb = b, vb, a, None
    if vb is None:
        return activation(loc, (va * _scaled_square(b)).expand(loc.shape))
    variance = va * torch.addcmul(vb, wide(b), wide(b)) + square(a) * vb
    return activation(loc, variance)


@rule(*ops("div", "divide", "true_divide"), _T.__truediv__, _T.__itruediv__, kind="linear")
def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        return NotImplemented
    if isinstance(other, Moments):
        if not is_weight(other):
            return NotImplemented  # the reciprocal of a Gaussian has no moments
        other = plain(other)
    if not isinstance(input, Moments):
        return torch.div(input, other)
    if isinstance(other, Tensor):
        return _mul(input, torch.reciprocal(other))
    return activation(input._loc / other, input._variance / float(other) ** 2)


@rule(*ops("square"), kind="activation")
def _square(input: Any) -> Any:
    """x² of a Gaussian: mean μ² + v, variance 4 μ² v + 2 v² (exact)."""
    mu, v = wide(input._loc), input._variance
    second = mu.square()
    return activation((second + v).to(input._loc.dtype), v * (4 * second + 2 * v))


@rule(*ops("pow"), _T.__pow__, _T.__ipow__, kind="activation")
def _pow(input: Any, exponent: Any) -> Any:
    if isinstance(input, Moments) and not isinstance(exponent, Tensor) and exponent in (1, 2):
        return _square(input) if exponent == 2 else activation(input._loc.clone(), input._variance)
    return NotImplemented


@rule(torch.addcmul, _T.addcmul, _T.addcmul_, kind="activation")
def _addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    product = _mul(tensor1, tensor2)
    return _add(input, product, alpha=value)


def _count(shape: Any, dim: Any) -> tuple[list[int], int]:
    dims = list(range(len(shape))) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    dims = dims or list(range(len(shape)))
    count = 1
    for d in dims:
        count *= shape[d]
    return dims, count


@rule(torch.mean, _T.mean, kind="activation")
def _mean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    loc, variance = input._loc, input._variance
    dims, count = _count(loc.shape, dim)
    return activation(loc.mean(dims, keepdim, dtype=dtype), variance.mean(dims, keepdim) / count)


@rule(torch.sum, _T.sum, kind="activation")
def _sum(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    loc, variance = input._loc, input._variance
    dims, _ = _count(loc.shape, dim)
    return activation(loc.sum(dims, keepdim, dtype=dtype), variance.sum(dims, keepdim))


@rule(_T.__setitem__, kind="linear")
def _setitem(input: Any, index: Any, value: Any) -> Any:
    """Out-of-place: the dispatcher writes nothing back, so this rule does."""
    if not isinstance(input, Moments):
        refuse("a random tensor is assigned into a slice of a plain one; build it with torch.cat instead.")
    if is_weight(input):
        refuse("a random weight is assigned to in place; build it with torch.cat instead.")
    loc, variance = input._loc.clone(), input._variance.clone()
    value_loc, value_variance = parts(value)
    loc[index] = value_loc
    variance[index] = 0.0 if value_variance is None else value_variance
    input._loc, input._held = loc, variance
    input._store.version += 1
    input._seen = input._store.version
    return None
