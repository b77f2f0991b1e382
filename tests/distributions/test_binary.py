"""Straight-through gates, the switched Normal, and the log-normal divergences."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.integrate import simpson
from torch.distributions import kl_divergence

from pyrobnn.distributions import StraightThroughBernoulli, SwitchedNormal
from pyrobnn.errors import ConfigError

GRADIENTS = ["straight-through", "trapezoid"]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_draws_are_exactly_binary_with_the_right_probability(gradient: str, temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-4.6, -1.0, 0.0, 2.0], requires_grad=True)
    q = StraightThroughBernoulli(logits, temperature, gradient)
    draws = q.rsample((50_000,))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(draws.mean(0), logits.sigmoid(), atol=0.01)
    assert draws.requires_grad
    assert torch.isfinite(dist.Bernoulli(0.3, validate_args=True).log_prob(draws)).all()


def test_density_moments_and_kl_are_the_bernoullis() -> None:
    logits = torch.tensor([-30.0, -1.0, 0.3, 5.0], dtype=torch.float64)
    q, b = StraightThroughBernoulli(logits), dist.Bernoulli(logits=logits)
    for value in (torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)):
        assert torch.allclose(q.log_prob(value), b.log_prob(value))
    assert torch.allclose(q.mean, b.mean) and torch.allclose(q.variance, b.variance)
    assert torch.allclose(q.entropy(), b.entropy())
    prior = torch.tensor(1e-4, dtype=torch.float64)
    gamma = logits.sigmoid()
    expected = torch.xlogy(gamma, gamma / prior) + torch.xlogy(1 - gamma, (1 - gamma) / (1 - prior))
    assert torch.allclose(kl_divergence(q, dist.Bernoulli(prior)), expected)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 0.7, 4.0])
def test_trapezoid_gradient_is_unbiased_for_quadratics(logit: float) -> None:
    """d/dθ E f(z) = γ (1 − γ) [f(1) − f(0)], and by averaging the surrogate over both outcomes exactly."""
    gamma = torch.tensor(logit, dtype=torch.float64).sigmoid().item()
    f = lambda z: 1.3 * z - 0.8 * z * z + 2.0  # noqa: E731
    slope = {0: 1.3, 1: 1.3 - 1.6}
    torch.manual_seed(0)
    logits = torch.full((4000,), logit, dtype=torch.float64, requires_grad=True)
    draws = StraightThroughBernoulli(logits, gradient="trapezoid").rsample()
    (surrogate,) = torch.autograd.grad(f(draws).sum(), logits)
    mean = 0.0
    for outcome, chance in ((0, 1 - gamma), (1, gamma)):
        found = surrogate[draws == outcome]
        assert len(found) and torch.allclose(found, found[0])
        assert found[0].item() == pytest.approx(slope[outcome] * 0.5 * abs(outcome - gamma))
        mean += chance * found[0].item()
    assert mean == pytest.approx(gamma * (1 - gamma) * (f(1) - f(0)))


def test_straight_through_gradient_is_that_of_the_relaxation() -> None:
    torch.manual_seed(0)
    logits = torch.zeros(200_000, dtype=torch.float64, requires_grad=True)
    (surrogate,) = torch.autograd.grad(StraightThroughBernoulli(logits, 0.5).rsample().sum(), logits)
    uniform = np.linspace(1e-7, 1 - 1e-7, 400_001)
    relaxed = 1 / (1 + np.exp(-np.log(uniform / (1 - uniform)) / 0.5))
    expected = simpson(relaxed * (1 - relaxed) / 0.5, x=uniform)
    assert surrogate.mean().item() == pytest.approx(expected, rel=0.01)


def test_gate_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        StraightThroughBernoulli(torch.zeros(1), 0.0)
    with pytest.raises(ConfigError, match="gradient"):
        StraightThroughBernoulli(torch.zeros(1), gradient="exact")


def test_expand_and_events() -> None:
    q = StraightThroughBernoulli(torch.zeros(3), 0.7, "trapezoid").expand([5, 3])
    assert q.batch_shape == (5, 3) and q.temperature == 0.7 and q.gradient == "trapezoid"
    assert q.to_event(1).rsample((2,)).shape == (2, 5, 3)
    s = SwitchedNormal(torch.zeros(3), torch.ones(3), 0.0, 1.0, torch.ones(3), torch.full((3,), 0.4)).expand([5, 3])
    assert s.rsample().shape == (5, 3) and s.inclusion.shape == (5, 3)


def test_switched_kl_is_the_kl_of_gate_and_weight_together() -> None:
    """KL[q(z) q(w|z) ‖ p(z) p(w)] by the two outcomes, against the two registered terms."""
    gamma, lam = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    loc, scale, sigma0 = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.2, 1.5))
    p = dist.Normal(torch.zeros_like(sigma0), sigma0)
    gate = StraightThroughBernoulli(gamma.logit())
    slab = SwitchedNormal(loc, scale, 0.0, sigma0, torch.ones_like(gamma), gamma)
    registered = kl_divergence(gate, dist.Bernoulli(lam)) + kl_divergence(slab, p)

    t = np.linspace(-3, 4, 100_001)
    q_on = stats.norm(0.7, 0.2)
    on = simpson(q_on.pdf(t) * (q_on.logpdf(t) - stats.norm(0, 1.5).logpdf(t)), x=t)
    expected = 0.3 * (np.log(0.3 / 0.1) + on) + 0.7 * np.log(0.7 / 0.9)
    assert registered.item() == pytest.approx(expected, abs=1e-8)


def test_switched_density_follows_the_gate_and_costs_nothing_where_off() -> None:
    on = torch.tensor([1.0, 0.0])
    q = SwitchedNormal(torch.full((2,), 0.7), torch.full((2,), 0.2), 0.0, 1.5, on, torch.full((2,), 0.3))
    value = torch.tensor([0.4, 0.4])
    expected = [dist.Normal(0.7, 0.2).log_prob(value[0]), dist.Normal(0.0, 1.5).log_prob(value[1])]
    assert torch.allclose(q.log_prob(value), torch.stack(expected))
    assert isinstance(q, torch.distributions.Normal)  # what local reparameterisation asks for
    assert torch.allclose(q.mean, torch.tensor(0.7)) and torch.allclose(q.stddev, torch.tensor(0.2))
    slab, off = dist.Normal(0.7, 0.2).entropy(), dist.Normal(0.0, 1.5).entropy()
    assert torch.allclose(q.entropy(), 0.3 * slab + 0.7 * off)


def test_switched_kl_gradient_reaches_the_inclusion() -> None:
    theta = torch.tensor(0.2, requires_grad=True)
    q = SwitchedNormal(torch.tensor(0.7), torch.tensor(0.2), 0.0, 1.0, torch.tensor(1.0), theta.sigmoid())
    p = dist.Normal(0.0, 1.0)
    (got,) = torch.autograd.grad(kl_divergence(q, p), theta)
    full = kl_divergence(dist.Normal(0.7, 0.2), p)
    assert torch.allclose(got, full * theta.sigmoid() * (1 - theta.sigmoid()))


@pytest.mark.parametrize(("m", "s"), [(0.0, 0.1), (1.3, 0.7), (-2.0, 1.5)])
@pytest.mark.parametrize(("shape", "rate"), [(0.5, 1.0), (4.0, 2.0), (13.0, 6.5)])
@pytest.mark.parametrize("inverse", [False, True])
def test_log_normal_kl(m: float, s: float, shape: float, rate: float, inverse: bool) -> None:
    double = lambda v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    family = dist.InverseGamma if inverse else dist.Gamma
    got = kl_divergence(dist.LogNormal(double(m), double(s)), family(double(shape), double(rate))).item()
    u = np.linspace(m - 14 * s, m + 14 * s, 200_001)  # u = log x
    law = stats.invgamma(shape, scale=rate) if inverse else stats.gamma(shape, scale=1 / rate)
    q = stats.norm(m, s)
    expected = simpson(q.pdf(u) * (q.logpdf(u) - u - law.logpdf(np.exp(u))), x=u)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_horseshoe_factors_multiply_to_a_squared_half_cauchy() -> None:
    torch.manual_seed(0)
    a = dist.Gamma(0.5, 1.0).sample((40_000,))
    b = dist.InverseGamma(0.5, 1.0).sample((40_000,))
    assert stats.kstest((a * b).sqrt().numpy(), stats.halfcauchy.cdf).pvalue > 1e-3
