"""Expected magnitudes and the capped Laplace density, against quadrature and draws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Laplace, Normal, kl_divergence

import pyrobnn.distributions.kl  # noqa: F401  (registers the KL)
from pyrobnn.distributions.capped_laplace import CappedLaplace
from pyrobnn.distributions.folded import expected_abs, expected_capped

POINTS = [(0.0, 1.0), (0.7, 0.2), (-1.5, 0.9), (0.02, 2.0), (3.0, 0.5), (-0.4, 0.01)]


def double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("loc", "scale"), POINTS)
def test_expected_magnitudes(loc: float, scale: float) -> None:
    def mean(function) -> float:
        ends = (loc - 12 * scale, loc + 12 * scale)
        kinks = [k for k in (-0.5, 0.0, 0.5) if ends[0] < k < ends[1]]
        return quad(lambda w: function(w) * norm.pdf(w, loc, scale), *ends, points=kinks, limit=200)[0]

    assert float(expected_abs(double(loc), double(scale))) == pytest.approx(mean(abs), rel=1e-8)
    wanted = mean(lambda w: min(abs(w), 0.5))
    assert float(expected_capped(double(loc), double(scale), 0.5)) == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize(("loc", "scale"), POINTS)
def test_gradients_are_those_of_the_integrals(loc: float, scale: float) -> None:
    arguments = [double(loc).requires_grad_(), double(scale).requires_grad_(), double(0.5).requires_grad_()]
    for function, count in ((expected_abs, 2), (expected_capped, 3)):
        found = torch.autograd.grad(function(*arguments[:count]), arguments[:count])
        for k in range(count):
            up, down = [a.detach().clone() for a in arguments[:count]], [a.detach().clone() for a in arguments[:count]]
            up[k] += 1e-6
            down[k] -= 1e-6
            wanted = float(function(*up) - function(*down)) / 2e-6
            assert float(found[k]) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_points_have_their_own_magnitude() -> None:
    loc = torch.tensor([-2.0, 0.0, 0.3])
    zero = torch.zeros(3)
    assert torch.allclose(expected_abs(loc, zero), loc.abs())
    assert torch.allclose(expected_capped(loc, zero, 0.5), torch.tensor([0.5, 0.0, 0.3]))
    # Without a reachable cap both are the same, and neither has a gradient that is not finite.
    scale = torch.tensor([1e-8, 0.1, 2.0], requires_grad=True)
    value = expected_capped(loc, scale, 1e3)
    assert torch.allclose(value, expected_abs(loc, scale), atol=1e-4)
    value.sum().backward()
    assert scale.grad is not None and bool(torch.isfinite(scale.grad).all())


@pytest.mark.parametrize("mix", [0.0, 0.5, 0.9])
def test_capped_laplace_is_a_density(mix: float) -> None:
    p = CappedLaplace(double(0.3), double(0.4), double(mix))

    def density(w: float) -> float:
        return float(p.log_prob(double(w)).exp())

    def integral(function, low: float, high: float) -> float:
        return quad(function, low, high, limit=200)[0]

    far = 60.0
    inside, outside = integral(density, 0, 0.4), integral(density, 0.4, far)
    assert 2 * (inside + outside) == pytest.approx(1.0, abs=1e-8)
    assert float(p.outside) == pytest.approx(2 * outside, rel=1e-6)
    second = integral(lambda w: w * w * density(w), 0, 0.4) + integral(lambda w: w * w * density(w), 0.4, far)
    assert float(p.variance) == pytest.approx(2 * second, rel=1e-6)
    # The slopes are those of the combined penalty.
    energy = [-math.log(density(w)) for w in (0.1, 0.2, 1.0, 1.1)]
    assert (energy[1] - energy[0]) / 0.1 == pytest.approx(1 / 0.3)
    assert (energy[3] - energy[2]) / 0.1 == pytest.approx((1 - mix) / 0.3)


def test_draws_follow_the_density() -> None:
    p = CappedLaplace(torch.tensor(0.3), torch.tensor(0.4), torch.tensor(0.7))
    draws = p.expand((200_000,)).rsample()
    assert abs(float(draws.mean())) < 4 * float(p.stddev) / 200_000**0.5
    assert float(draws.square().mean()) == pytest.approx(float(p.variance), rel=0.02)
    for at in (0.1, 0.4, 1.0):
        share = float((draws.abs() > at).float().mean())
        tail = 2 * quad(lambda w: float(p.log_prob(torch.tensor(w)).exp()), at, 30, limit=200)[0]
        assert share == pytest.approx(tail, abs=0.005)


@pytest.mark.parametrize(("loc", "scale"), POINTS)
def test_kl_from_a_gaussian(loc: float, scale: float) -> None:
    q, p = Normal(double(loc), double(scale)), CappedLaplace(double(0.3), double(0.4), double(0.6))

    def integrand(w: float) -> float:
        x = double(w)
        return float(q.log_prob(x).exp() * (q.log_prob(x) - p.log_prob(x)))

    ends = (loc - 11 * scale, loc + 11 * scale)
    kinks = [k for k in (-0.4, 0.0, 0.4) if ends[0] < k < ends[1]]
    wanted = quad(integrand, *ends, points=kinks, limit=300)[0]
    assert float(kl_divergence(q, p)) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    plain = CappedLaplace(double(0.3), double(0.4), double(0.0))
    assert float(kl_divergence(q, plain)) == pytest.approx(float(kl_divergence(q, Laplace(double(0.0), double(0.3)))))
