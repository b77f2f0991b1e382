"""Online Newton steps of widths: against the exact posterior of a quadratic, IVON's own update, and its package."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.guides.noise_balance import ard_variance
from pyrobnn.inference.newton import NewtonScales, Scale

HESSIAN = torch.tensor([0.02, 0.3, 2.0, 40.0], dtype=torch.float64)
SIZE, PRIOR = 500, 0.7


def run(steps: int, rate: float, kl_weight: float) -> torch.Tensor:
    """σ after Newton steps on NLL/N = ½ Σ h w², one draw each, prior N(0, s²); geometric mean over 32 runs."""
    generator = torch.Generator().manual_seed(0)
    log_scale = nn.Parameter(torch.full((32, 4), -2.0, dtype=torch.float64))
    newton = NewtonScales([Scale(log_scale, "w", 1.0)], rate, SIZE)
    for _ in range(steps):
        newton.zero_grad()
        sigma = log_scale.exp()
        w = sigma * torch.randn(32, 4, dtype=torch.float64, generator=generator)
        q = torch.distributions.Normal(torch.zeros_like(w), sigma, validate_args=False)
        p = torch.distributions.Normal(0.0, PRIOR)
        loss = 0.5 * (HESSIAN * w.square()).sum() + kl_weight / SIZE * torch.distributions.kl_divergence(q, p).sum()
        loss.backward()
        newton.step(kl_weight)
    return log_scale.detach().mean(0).exp()


@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
def test_widths_rest_at_the_exact_posterior(kl_weight: float) -> None:
    temperature = kl_weight / SIZE
    exact = (temperature / (HESSIAN + temperature / PRIOR**2)).sqrt()
    torch.testing.assert_close(run(400, 0.03, kl_weight), exact, rtol=0.05, atol=0)


def test_one_step_is_that_of_ivon() -> None:
    """h + δ ← (h + δ)(1 + ρ f + ½ ρ² f²), f = (ĥ + δ) / (h + δ) − 1, with σ² = 1 / (N (h + δ)) and ĥ = g ε / σ."""
    rate, delta = 0.3, 1 / (SIZE * PRIOR**2)
    h = torch.tensor([0.05, 0.5, 3.0, 10.0], dtype=torch.float64)
    sigma, noise = (SIZE * (h + delta)).rsqrt(), torch.tensor([0.3, -1.2, 2.0, 0.0], dtype=torch.float64)
    gradient = HESSIAN * sigma * noise
    ratio = (gradient * noise / sigma + delta) / (h + delta) - 1
    expected = (h + delta) * (1 + rate * ratio + 0.5 * rate**2 * ratio.square())
    log_scale = nn.Parameter(sigma.log())
    log_scale.grad = sigma * noise * gradient + (sigma.square() / PRIOR**2 - 1) / SIZE
    NewtonScales([Scale(log_scale, "w", 1.0)], rate, SIZE).step(1.0)
    torch.testing.assert_close((-2 * log_scale.detach()).exp() / SIZE, expected)


def test_it_agrees_with_the_package_of_ivon() -> None:
    ivon = pytest.importorskip("ivon", reason="needs ivon-opt")
    torch.manual_seed(0)
    w = nn.Parameter(torch.zeros(4))
    options = {"lr": 1e-9, "ess": SIZE, "weight_decay": 1 / (SIZE * PRIOR**2), "hess_init": 1.0, "beta2": 0.99}
    optimiser = ivon.IVON([w], **options)
    logs = []
    for step in range(3000):
        with optimiser.sampled_params(train=True):
            optimiser.zero_grad()
            (0.5 * (HESSIAN.float() * w.square()).sum()).backward()
        optimiser.step()
        if step > 1500:
            logs.append(-0.5 * (SIZE * (optimiser.param_groups[0]["hess"] + options["weight_decay"])).log())
    theirs = torch.stack(logs).mean(0).exp()
    torch.testing.assert_close(run(400, 0.03, 1.0), theirs.double(), rtol=0.1, atol=0)


def test_prices_no_weight_and_failed_steps() -> None:
    log_scale = nn.Parameter(torch.zeros(3))
    newton = NewtonScales([Scale(log_scale, "a.noise", 1.0)], 0.5, 10, {"a.noise": torch.tensor([1.0, 2.0, 0.0])})
    log_scale.grad = torch.full((3,), 0.1)
    newton.step(1.0, torch.ones(()))
    newton.step(0.0)
    assert bool((log_scale == 0).all())
    newton.step(1.0)
    for entry, weight in ((0, 1.0), (1, 2.0)):
        change = 0.5 * 0.1 / (weight / 10)
        assert float(log_scale.detach()[entry]) == pytest.approx(-0.5 * math.log(1 + change + 0.5 * change**2))
    assert float(log_scale.detach()[2]) == 0.0
    log_scale.grad = torch.full((3,), -1e6)  # never more than a factor that stays positive
    newton.step(1.0)
    assert bool(torch.isfinite(log_scale).all())


@pytest.mark.parametrize("guide_of", [pb.guides.MeanField, pb.guides.KernelMeanField])
def test_a_fit_moves_widths_by_newton_and_means_as_before(guide_of: type) -> None:
    data = pb.load_data("digits")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    groups = pb.channel_groups(net, data.example)
    model = pb.BayesianModel(net, pb.priors.Gaussian(0.3), data_size=len(data.train), groups=groups)
    guide = guide_of(model)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    result = pb.fit(model, guide, data, epochs=1, max_steps=6, scale_rate=0.01, precision="fp32", progress=False)
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in result.guide.named_parameters()}
    assert all(value > 0 for value in moved.values()), moved
    again = pb.BayesianModel(net, pb.priors.Gaussian(0.3), data_size=len(data.train), groups=groups)
    same = pb.fit(
        again, guide_of(again), data, epochs=1, max_steps=6, scale_rate=0.01, precision="fp32", progress=False
    )
    for (_, a), (_, b) in zip(result.guide.named_parameters(), same.guide.named_parameters(), strict=True):
        assert torch.equal(a, b)


def test_guides_without_widths_and_rates_out_of_range_are_refused() -> None:
    data = pb.load_data("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = pb.BayesianModel(net, None, data_size=len(data.train))
    with pytest.raises(ConfigError, match="scale_rate steps the widths"):
        pb.fit(model, pb.guides.NoLatents(), data, epochs=1, scale_rate=0.01, progress=False)
    for rate in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="scale_rate"):
            pb.inference.config.FitConfig(scale_rate=rate)


def test_priced_noise_rests_where_the_price_says() -> None:
    """The weight of a site's KL is in its temperature: ARD noise under a known curvature, at two prices."""
    for price in (1.0, 20.0):
        f, n = 400.0, 1000
        generator = torch.Generator().manual_seed(0)
        log_scale = nn.Parameter(torch.full((64,), -1.0, dtype=torch.float64))
        newton = NewtonScales([Scale(log_scale, "a.noise", 1.0)], 0.02, n, {"a.noise": price})
        for _ in range(600):
            newton.zero_grad()
            sigma = log_scale.exp()
            kl = 0.5 * torch.log1p(sigma.pow(-2)).sum()
            drawn = sigma * torch.randn(64, dtype=torch.float64, generator=generator)
            (0.5 * f / n * drawn.square().sum() + price * kl / n).backward()
            newton.step(1.0)
        exact = float(ard_variance(torch.tensor(f), price).sqrt())
        assert float(log_scale.detach().mean().exp()) == pytest.approx(exact, rel=0.05)
