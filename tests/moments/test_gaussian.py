"""Moments of functions of one Gaussian, against quadrature in double precision."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyrobnn.moments.gaussian import max_moments, piecewise_moments, quadrature_moments
from pyrobnn.moments.relu import relu_moments

POINTS = [(0.0, 1.0), (1.3, 0.5), (-2.0, 1.5), (6.0, 1.0), (-4.0, 1.0), (50.0, 0.01), (3.0, 1e-6), (-0.02, 1e-4)]


def by_quadrature(f, mean: float, variance: float) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    s = math.sqrt(variance)
    density = stats.norm(mean, s).pdf
    lo, hi = mean - 14 * s, mean + 14 * s
    edges = sorted({lo, hi, *(p for p in (mean, -3.0, 0.0, 3.0) if lo < p < hi)})

    def integral(g) -> float:  # type: ignore[no-untyped-def]
        pieces = [
            integrate.quad(lambda x: g(x) * density(x), a, b, epsabs=1e-14, limit=200)[0]
            for a, b in itertools.pairwise(edges)
        ]
        return float(sum(pieces))

    first = integral(f)
    return first, integral(lambda x: (f(x) - first) ** 2)


@pytest.mark.parametrize("mean, variance", POINTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu(mean: float, variance: float, dtype: torch.dtype) -> None:
    m, v = relu_moments(torch.tensor([mean], dtype=dtype), torch.tensor([variance], dtype=dtype))
    expected = by_quadrature(lambda x: max(x, 0.0), mean, variance)
    scale = math.sqrt(variance)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-9
    assert abs(m.item() - expected[0]) < tolerance * (scale + abs(expected[0]))
    assert abs(v.item() - expected[1]) < tolerance * variance


def test_relu_gradients_and_layouts() -> None:
    torch.manual_seed(0)
    mean = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    variance = torch.rand(2, 3, 4, 4, dtype=torch.float64).add(0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: relu_moments(m, v), (mean, variance))
    last = mean.detach().to(memory_format=torch.channels_last)
    for v in (variance.detach(), variance.detach().to(memory_format=torch.channels_last)):
        m2, v2 = relu_moments(last, v)
        torch.testing.assert_close((m2, v2), tuple(t.detach() for t in relu_moments(mean, variance)))
        assert m2.is_contiguous(memory_format=torch.channels_last)
    sliced = mean.detach()[:, ::2]
    torch.testing.assert_close(
        relu_moments(sliced, variance.detach()[:, ::2]), tuple(t.detach()[:, ::2] for t in relu_moments(mean, variance))
    )


def test_relu_over_many_chunks_equals_one_chunk() -> None:
    torch.manual_seed(0)
    mean, variance = torch.randn(70_000 * 3), torch.rand(70_000 * 3)
    m, v = relu_moments(mean, variance)
    for i in (0, 65_535, 65_536, 209_999):
        torch.testing.assert_close((m[i], v[i]), relu_moments(mean[i], variance[i]))


def test_relu_of_a_constant_is_relu_with_finite_gradients() -> None:
    mean = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    variance = torch.zeros(3, requires_grad=True)
    m, v = relu_moments(mean, variance)
    torch.testing.assert_close(m, torch.tensor([0.0, 0.0, 2.0]))
    assert v.abs().max() < 1e-20
    (m.sum() + v.sum()).backward()
    assert torch.isfinite(mean.grad).all() and torch.isfinite(variance.grad).all()


HARDSWISH = ([-3.0, 3.0], [[0], [0, 0.5, 1 / 6], [0, 1]])


@pytest.mark.parametrize("mean, variance", POINTS)
def test_piecewise(mean: float, variance: float) -> None:
    m, v = piecewise_moments(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([variance], dtype=torch.float64), *HARDSWISH
    )
    expected = by_quadrature(lambda x: x * min(max(x + 3, 0.0), 6.0) / 6, mean, variance)
    np.testing.assert_allclose((m.item(), v.item()), expected, rtol=1e-6, atol=1e-9)


def test_piecewise_in_single_precision_does_not_cancel() -> None:
    m, v = piecewise_moments(torch.tensor([50.0]), torch.tensor([1e-4]), *HARDSWISH)
    torch.testing.assert_close((m, v), (torch.tensor([50.0]), torch.tensor([1e-4])))


@pytest.mark.parametrize("mean, variance", [(0.0, 1.0), (-2.0, 0.5), (4.0, 2.0)])
def test_gauss_hermite(mean: float, variance: float) -> None:
    m, v = quadrature_moments(
        torch.tanh, torch.tensor([mean], dtype=torch.float64), torch.tensor([variance], dtype=torch.float64), 20
    )
    np.testing.assert_allclose((m.item(), v.item()), by_quadrature(math.tanh, mean, variance), 6e-3, 1e-6)


def test_clark_gradients_and_symmetry() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    va, vb = torch.rand(2, 5, dtype=torch.float64).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: max_moments((t[0], t[1]), (t[2], t[3])), (a, va, b, vb))
    torch.testing.assert_close(max_moments((a, va), (b, vb)), max_moments((b, vb), (a, va)))


@pytest.mark.parametrize("deviation", [1e-3, 1.0, 30.0])
def test_a_rectified_variable_is_zero_rather_than_denormal(deviation: float) -> None:
    """Denormal numbers, and those whose squares are, make every product with them slow."""
    mean = deviation * torch.linspace(-30, 30, 4001)
    inputs = mean.requires_grad_(), torch.full_like(mean, deviation**2).requires_grad_()
    outputs = relu_moments(*inputs)
    gradients = torch.autograd.grad(outputs, inputs, [torch.full_like(mean, 1e-6)] * 2)
    tiny = torch.finfo(torch.float32).tiny
    for values in (*outputs, outputs[0].square(), outputs[1].square(), *gradients):
        size = values.detach().double().abs()
        assert bool(((size == 0) | (size >= tiny)).all())
        assert bool((size > 0).any())
    off = outputs[0].detach() == 0
    assert float(mean.detach()[off].max()) < -6.9 * deviation
