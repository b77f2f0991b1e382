"""ARD, the two-spike prior and its bound, against quadrature and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import simpson
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from pyrobnn.distributions import ARD, NormalPair, TwoSpike, responsibility
from pyrobnn.errors import ConfigError


def normal(loc: float, scale: float) -> Normal:
    return Normal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


@pytest.mark.parametrize(("loc", "scale"), [(1.0, 0.05), (0.3, 0.4), (0.0, 1.0), (-2.0, 0.01)])
def test_ard_kl_is_the_best_gaussian_of_zero_mean(loc: float, scale: float) -> None:
    def kl_to(log_gamma: float) -> float:
        gamma = math.exp(log_gamma)
        return 0.5 * (math.log(gamma / scale**2) + (scale**2 + loc**2) / gamma - 1)

    best = minimize_scalar(kl_to, bounds=(-12, 4), method="bounded", options={"xatol": 1e-10})
    assert kl_divergence(normal(loc, scale), ARD()).item() == pytest.approx(best.fun, abs=1e-8)


@pytest.mark.parametrize(("loc", "scale"), [(1.0, 0.05), (0.3, 0.4), (0.0, 1.0)])
def test_ard_log_prob_gives_a_lower_value_by_jensen(loc: float, scale: float) -> None:
    t = np.linspace(loc - 12 * scale, loc + 12 * scale, 400_000)  # an even count: 0 is no grid point
    q = norm(loc, scale)
    log_p = ARD().log_prob(torch.from_numpy(t)).numpy()
    sampled = simpson(q.pdf(t) * (q.logpdf(t) - log_p), x=t)
    closed = kl_divergence(normal(loc, scale), ARD()).item()
    assert sampled <= closed + 1e-6
    if loc == 0.0:
        gap = 0.5 * (np.euler_gamma + math.log(2))
        assert closed - sampled == pytest.approx(gap, abs=1e-3)


def test_ard_draws_from_the_unit_member() -> None:
    torch.manual_seed(0)
    draws = ARD().expand([3]).to_event(1).sample((20_000,))
    assert draws.shape == (20_000, 3)
    assert draws.mean().abs() < 0.02 and abs(draws.var() - 1) < 0.03


@pytest.mark.parametrize("p", [TwoSpike(0.3, 0.1), NormalPair(0.25, 0.0, 0.05, 0.0, 1.0)])
def test_mixture_density_and_draws(p: NormalPair) -> None:
    t = np.linspace(-12, 12, 400_001)
    density = p.log_prob(torch.from_numpy(t)).exp().numpy()
    assert simpson(density, x=t) == pytest.approx(1.0, abs=1e-6)
    assert simpson(density * t, x=t) == pytest.approx(p.mean.item(), abs=1e-6)
    assert simpson(density * (t - p.mean.item()) ** 2, x=t) == pytest.approx(p.variance.item(), rel=1e-5)
    torch.manual_seed(0)
    draws = p.expand([2]).sample((100_000,))
    assert draws.mean().item() == pytest.approx(p.mean.item(), abs=0.01)
    assert draws.var().item() == pytest.approx(p.variance.item(), rel=0.03)


@pytest.mark.parametrize(("loc", "scale"), [(1.0, 0.05), (0.5, 0.1), (0.0, 0.3), (0.45, 0.02), (3.0, 0.1)])
@pytest.mark.parametrize("pi", [0.1, 0.5])
def test_two_spike_bound(loc: float, scale: float, pi: float) -> None:
    tau = 0.1
    q, p = (
        normal(loc, scale),
        TwoSpike(torch.tensor(pi, dtype=torch.float64), torch.tensor(tau, dtype=torch.float64)),
    )
    bound = kl_divergence(q, p).item()
    t = np.linspace(loc - 14 * scale, loc + 14 * scale, 200_001)
    log_p = p.log_prob(torch.from_numpy(t)).numpy()
    exact = simpson(norm(loc, scale).pdf(t) * (norm(loc, scale).logpdf(t) - log_p), x=t)
    assert bound >= exact - 1e-8

    kl0, kl1 = (kl_divergence(q, normal(centre, tau)).item() for centre in (0.0, 1.0))

    def by_assignment(r: float) -> float:
        return r * kl1 + (1 - r) * kl0 + r * math.log(r / pi) + (1 - r) * math.log((1 - r) / (1 - pi))

    r = responsibility(q, p).item()
    best = minimize_scalar(by_assignment, bounds=(1e-12, 1 - 1e-12), method="bounded", options={"xatol": 1e-12})
    assert bound == pytest.approx(best.fun, abs=1e-5)
    assert r == pytest.approx(best.x, abs=1e-4)
    if abs(loc - 0.5) > 0.4 and scale <= tau:  # far from the watershed one spike takes all and the bound is the KL
        assert bound == pytest.approx(exact, abs=0.02)


def test_responsibility_survives_extreme_kls() -> None:
    loc = torch.tensor([-50.0, 50.0], requires_grad=True)
    q = Normal(loc, 1e-3)
    p = TwoSpike(0.5, 0.05)
    kl = kl_divergence(q, p)
    kl.sum().backward()
    assert torch.isfinite(kl).all() and torch.isfinite(loc.grad).all()
    assert responsibility(q, p).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("pi", "tau"), [(0.0, 0.1), (1.0, 0.1), (0.5, 0.0), (0.5, -1.0)])
def test_two_spike_settings_are_checked(pi: float, tau: float) -> None:
    with pytest.raises(ConfigError):
        TwoSpike(pi, tau)


@pytest.mark.parametrize(("loc", "scale"), [(1.0, 1e-30), (1e15, 1e-10), (-3.0, 1e-44), (0.0, 1e-30), (1e-3, 1.0)])
def test_ard_kl_stays_finite_for_any_ratio(loc: float, scale: float) -> None:
    """½ log(1 + μ²/σ²) and its gradients in float32, against float64."""
    parts = [torch.tensor([value], requires_grad=True) for value in (loc, scale)]
    kl = kl_divergence(Normal(*parts), ARD())
    gradients = torch.autograd.grad(kl.sum(), parts)
    exact = [p.detach().double().requires_grad_() for p in parts]
    wanted = 0.5 * torch.log1p((exact[0] / exact[1]).square())
    assert torch.allclose(kl.double(), wanted.detach(), rtol=1e-5)
    for found, true in zip(gradients, torch.autograd.grad(wanted.sum(), exact), strict=True):
        assert torch.allclose(found.double(), true, rtol=1e-3) or (true.abs() > 3e38 and found.isinf())
