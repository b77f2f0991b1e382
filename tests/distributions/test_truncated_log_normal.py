"""The truncated log-normal and its log-uniform prior against quadrature on the log scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import simpson
from scipy.stats import kstest, truncnorm

from pyrobnn.distributions import LogUniform, TruncatedLogNormal
from pyrobnn.errors import ConfigError

A, B = -20.0, 0.0
# Inside, at the upper edge, far above it (log θ is then exponential), very wide, at the lower edge.
CASES = [
    (0.0, math.exp(-5)),
    (0.0, 1e-5),
    (-3.0, 1.0),
    (0.5, 0.3),
    (5.0, 0.3),
    (5.0, 0.05),
    (5.0, math.exp(-5)),
    (5.0, 1e-6),
    (-1.0, 150.0),
    (-20.0, 2.0),
    (-40.0, 0.5),
    (-40.0, 0.01),
]


def grid(loc: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of log θ where q has mass, and its density there, normalised by Simpson's rule."""
    mode = min(max(loc, A), B)
    out = abs(mode - loc)
    reach = 120 * scale**2 / (math.sqrt(out**2 + 120 * scale**2) + out)  # from the mode to e⁻⁶⁰ of its density
    d = np.linspace(max(A - mode, -reach), min(B - mode, reach), 200_001)
    density = np.exp(-0.5 * d * (d + 2 * (mode - loc)) / scale**2)
    t = mode + d
    return t, density / simpson(density, x=t)


def make(loc: float, scale: float) -> TruncatedLogNormal:
    return TruncatedLogNormal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


@pytest.mark.parametrize(("loc", "scale"), CASES)
def test_moments_density_and_kl_match_quadrature(loc: float, scale: float) -> None:
    q = make(loc, scale)
    t, density = grid(loc, scale)
    mean = simpson(density * np.exp(t), x=t)
    variance = simpson(density * (np.exp(t) - mean) ** 2, x=t)
    assert q.mean.item() == pytest.approx(mean, rel=1e-6)
    assert q.variance.item() == pytest.approx(variance, rel=1e-4)
    assert q.snr.item() == pytest.approx(mean / math.sqrt(variance), rel=1e-4)
    inside = t[:: len(t) // 7]
    log_prob = q.log_prob(torch.from_numpy(np.exp(inside)))
    expected = np.log(np.interp(inside, t, density)) - inside
    slope = abs(inside[0] - loc) / scale**2 + 1  # θ itself is rounded: its last digit moves the log density so much
    assert np.allclose(log_prob.numpy(), expected, rtol=1e-6, atol=1e-6 + 4e-16 * slope)
    kl = torch.distributions.kl_divergence(q, LogUniform(A, B)).item()
    positive = density > 0
    integrand = np.where(positive, density * (np.log(np.where(positive, density, 1)) + math.log(B - A)), 0)
    assert kl == pytest.approx(simpson(integrand, x=t), rel=1e-6, abs=1e-7)


def test_float32_gives_the_float64_figures() -> None:
    loc, scale = (torch.tensor(x) for x in zip(*CASES, strict=True))
    q32, q64 = TruncatedLogNormal(loc, scale), TruncatedLogNormal(loc.double(), scale.double())
    kl32 = torch.distributions.kl_divergence(q32, LogUniform(A, B))
    kl64 = torch.distributions.kl_divergence(q64, LogUniform(A, B))
    assert kl32.dtype == torch.float32
    assert torch.allclose(kl32.double(), kl64, rtol=1e-5)
    assert torch.allclose(q32.snr.double(), q64.snr, rtol=1e-5)


@pytest.mark.parametrize(("loc", "scale"), [(-3.0, 1.0), (0.5, 0.3), (5.0, 0.05), (-20.0, 2.0), (-1.0, 150.0)])
def test_draws_follow_the_truncated_normal(loc: float, scale: float) -> None:
    torch.manual_seed(0)
    draws = make(loc, scale).sample((20_000,)).log().numpy()
    assert draws.min() >= A - 1e-9 and draws.max() <= B
    reference = truncnorm((A - loc) / scale, (B - loc) / scale, loc=loc, scale=scale)
    if loc == 5.0:  # scipy's own tail is inaccurate here; 100 sd out, log θ is exponential with rate 5 / scale²
        assert -draws.mean() == pytest.approx(scale**2 / 5.0, rel=0.03)
    else:
        assert kstest(draws, reference.cdf).pvalue > 1e-3


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.2), (-3.0, 1.0), (2.0, 0.5), (-1.0, 20.0), (-19.0, 3.0)])
def test_pathwise_gradient_is_the_gradient_of_the_mean(loc: float, scale: float) -> None:
    torch.manual_seed(1)
    parameters = torch.tensor([loc, scale], dtype=torch.float64, requires_grad=True)
    draws = TruncatedLogNormal(parameters[0], parameters[1]).rsample((100_000,))
    (sampled,) = torch.autograd.grad(draws.log().mean(), parameters)
    step = 1e-4

    def mean_log(which: int, sign: int) -> float:
        moved = [loc, scale]
        moved[which] += sign * step
        t, density = grid(*moved)
        return float(simpson(density * t, x=t))

    exact = [(mean_log(i, 1) - mean_log(i, -1)) / (2 * step) for i in range(2)]
    assert sampled.tolist() == pytest.approx(exact, rel=0.03, abs=0.01)


def test_gradients_stay_finite_at_the_clipping_corners() -> None:
    corners = [(m, s) for m in (-20.0, 0.0, 5.0) for s in (-20.0, -5.0, 5.0)]
    loc = torch.tensor([m for m, _ in corners], requires_grad=True)
    log_scale = torch.tensor([s for _, s in corners], requires_grad=True)
    q = TruncatedLogNormal(loc, log_scale.exp())
    kl = torch.distributions.kl_divergence(q, LogUniform(A, B))
    (kl.sum() + q.rsample().sum() + q.mean.sum()).backward()
    for value in (kl, q.snr, q.mean, q.variance, loc.grad, log_scale.grad):
        assert torch.isfinite(value).all()
    assert ((q.mean >= 0) & (q.mean <= 1)).all()


def test_draws_pass_the_priors_support_check() -> None:
    torch.manual_seed(2)
    q = TruncatedLogNormal(torch.tensor([-20.0, 5.0, 0.0]), torch.tensor([1e-3, 1e-3, 50.0]))
    draws = q.sample((1000,))
    prior = LogUniform(A, B, validate_args=True).expand([3])
    assert torch.isfinite(prior.log_prob(draws)).all()
    with pytest.raises(ValueError, match="support"):
        prior.log_prob(torch.full((3,), 1.1))


def test_log_uniform_density_draws_and_moments() -> None:
    torch.manual_seed(3)
    p = LogUniform(-4.0, 1.0).expand([2])
    assert p.batch_shape == (2,) and p.sample((5,)).shape == (5, 2)
    t = np.linspace(-4, 1, 20_001)
    density = p.log_prob(torch.from_numpy(np.exp(np.stack([t, t], 1)))).exp().numpy()[:, 0]
    assert simpson(density * np.exp(t), x=t) == pytest.approx(1.0)
    draws = p.sample((100_000,)).double()
    assert draws.mean().item() == pytest.approx(p.mean[0].item(), rel=0.01)
    assert draws.var().item() == pytest.approx(p.variance[0].item(), rel=0.02)
    assert kstest(draws[:20_000, 0].log().numpy(), "uniform", args=(-4, 5)).pvalue > 1e-3


def test_kl_is_infinite_where_the_prior_has_no_mass() -> None:
    q = TruncatedLogNormal(torch.zeros(2), torch.ones(2), -20.0, 0.0)
    assert torch.isinf(torch.distributions.kl_divergence(q, LogUniform(-10.0, 0.0))).all()
    assert torch.isfinite(torch.distributions.kl_divergence(q, LogUniform(-30.0, 1.0))).all()


@pytest.mark.parametrize("make_one", [lambda: LogUniform(0.0, 0.0), lambda: TruncatedLogNormal(0.0, 1.0, 1.0, -1.0)])
def test_an_empty_range_is_refused(make_one) -> None:
    with pytest.raises(ConfigError, match="a < b"):
        make_one()
