"""Variances in bfloat16 against the formula in fp64, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.moments import Moments, narrow
from pyrobnn.moments.relu import relu_moments
from pyrobnn.moments.tensor import activation

ROUNDING = 2**-8  # of one bfloat16 operand


def off(found: Tensor, expected: Tensor) -> float:
    """Error as a share of the size of the whole."""
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize(
    ("given", "sigma"),
    [(True, "none"), *((given, sigma) for given in (False, True) for sigma in ("per filter", "per weight"))],
)
@pytest.mark.parametrize(
    ("func", "rest"),
    [(F.conv1d, (2, 1, 1, 1)), (F.conv2d, (1, 1, 1, 1)), (F.conv2d, ((2, 1), (0, 2), (1, 2), 1))],
)
def test_variance_of_a_convolution(func: Callable[..., Any], rest: tuple[Any, ...], given: bool, sigma: str) -> None:
    torch.manual_seed(0)
    space = [9, 8][: 1 if func is F.conv1d else 2]
    window = [3] * len(space)
    mu, m = torch.randn(4, 6, *space).bfloat16(), torch.randn(5, 6, *window)
    v = torch.rand(4, 6, *space).bfloat16() if given else None
    spreads = {"none": None, "per filter": torch.rand(5, 1, *[1] * len(space)), "per weight": torch.rand_like(m)}
    s2, scale, b2 = spreads[sigma], torch.rand(5) + 0.5, torch.rand(5)
    if func is F.conv2d:
        mu = mu.to(memory_format=torch.channels_last)
    leaves = [t.requires_grad_() for t in (mu, v, m, s2, scale, b2) if t is not None]

    def full(t: Tensor | None) -> Tensor | None:
        return t.expand(m.shape) if t is not None and sigma == "per filter" else t

    found = narrow.spread(func, mu, v, m, full(s2), b2, rest, scale)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    parts = iter(exact)
    mu64, v64, m64, s64, scale64, b64 = (None if t is None else next(parts) for t in (mu, v, m, s2, scale, b2))
    assert mu64 is not None and m64 is not None and scale64 is not None and b64 is not None
    wide = torch.zeros_like(m64) if s64 is None else s64.expand(m64.shape)
    expected = func(mu64.square(), wide, None, *rest)
    if v64 is not None:
        expected = expected + func(v64, m64.square() + wide, None, *rest)
    shape = (-1, *[1] * len(space))
    expected = (expected + b64.view(shape)) * scale64.view(shape)
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert off(found, expected) < 2 * ROUNDING
    cotangent = torch.rand_like(expected) + 0.5
    wanted = torch.autograd.grad(expected, exact, cotangent, allow_unused=True)
    slopes = torch.autograd.grad(found, leaves, cotangent.bfloat16(), allow_unused=True)
    for leaf, slope, want in zip(leaves, slopes, wanted, strict=True):
        if want is None or not want.any():  # without a variance of the weights the mean does not matter
            assert slope is None or not slope.any()
            continue
        assert slope is not None and slope.dtype == leaf.dtype
        assert off(slope, want) < 3 * ROUNDING


def test_layers_that_it_does_not_know_keep_fp32() -> None:
    x = Moments(torch.randn(2, 4, 6, 6), torch.rand(2, 4, 6, 6))
    grouped, plain = torch.randn(8, 2, 3, 3), torch.randn(8, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        kept = [F.conv2d(x, grouped, None, 1, 1, 1, 2), F.conv2d(x, plain, None, 1, "same")]
        narrowed = F.conv2d(x, plain, None, 1, 1)
    assert [out.spread.dtype for out in kept] == [torch.float32] * 2
    assert narrowed.spread.dtype == torch.bfloat16 and narrowed.variance.dtype == torch.float32
    assert off(narrowed.variance, kept[1].variance.double()) < 2 * ROUNDING


def test_rectified_in_bfloat16() -> None:
    """Calculated in fp32, so that what is lost is the rounding of what comes out and of what is kept for the gradient."""
    torch.manual_seed(1)
    mean, variance = 2 * torch.randn(3, 8, 7, 5), torch.rand(3, 8, 7, 5) + 1e-3
    narrow_inputs = [t.bfloat16().to(memory_format=torch.channels_last).requires_grad_() for t in (mean, variance)]
    exact = [t.detach().double().requires_grad_() for t in narrow_inputs]
    found, expected = relu_moments(*narrow_inputs), relu_moments(*exact)
    cotangents = [torch.randn_like(t) for t in expected]
    slopes = torch.autograd.grad(found, narrow_inputs, [c.bfloat16() for c in cotangents])
    wanted = torch.autograd.grad(expected, exact, cotangents)
    for one, other in zip((*found, *slopes), (*expected, *wanted), strict=True):
        assert one.dtype == torch.bfloat16 and one.stride() == narrow_inputs[0].stride()
        assert off(one, other) < ROUNDING
    with torch.no_grad():
        again = relu_moments(*narrow_inputs)
    assert all(torch.equal(one, other) for one, other in zip(again, found, strict=True))


def test_sums_stay_narrow_and_mixed_ones_are_wide() -> None:
    torch.manual_seed(2)
    loc = torch.randn(2, 3).bfloat16()
    one, wide = Moments(loc, torch.ones(2, 3)), torch.rand(2, 3)
    held = activation(loc, wide.bfloat16())
    assert (held + activation(loc, wide.bfloat16())).spread.dtype == torch.bfloat16
    mixed = held + one
    assert mixed.spread.dtype == torch.float32
    assert torch.equal(mixed.variance, 1 + wide.bfloat16().float())
