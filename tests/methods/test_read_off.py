"""What a fitted channel is worth is what a quadratic likelihood of known curvature loses without it.

Every family of noise and gates, fitted to log p(D | θ) = −½ F (θ − 1)² under its own KL at two weights, by ordinary
minimisation of the exact negative ELBO; and started at the equilibrium, where there is nothing left to fit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.distributions import ARD, LogUniform, TruncatedLogNormal
from pyrobnn.guides.noise import NormalNoise, TruncatedLogNormalNoise
from pyrobnn.guides.noise_balance import ard_loss, ard_variance, log_uniform_loss, spike_loss, spike_variance
from pyrobnn.guides.spike_slab import SpikeSlabGuide
from pyrobnn.inference.pricing import PricedKL
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise, SpikeNoise
from pyrobnn.priors.spike_slab import SpikeSlab

CURVATURES = torch.tensor([40.0, 300.0, 5000.0], dtype=torch.float64)
WEIGHTS = (0.3, 4.0)


def minimised(objective: Any, *start: Tensor) -> list[Tensor]:
    """Where a sum of independent objectives is least."""
    values = [value.clone().double().requires_grad_() for value in start]
    optimiser = torch.optim.LBFGS(
        values, max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = objective(*values).sum()
        loss.backward()
        return loss

    optimiser.step(step)
    return [value.detach() for value in values]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_ard_noise(weight: float) -> None:
    """Location and scale both fitted: the loss that is read is that from the fitted location to 0."""

    def objective(loc: Tensor, log_scale: Tensor) -> Tensor:
        scale = log_scale.exp()
        kl = torch.distributions.kl_divergence(torch.distributions.Normal(loc, scale), ARD(like=loc))
        return 0.5 * CURVATURES * ((loc - 1).square() + scale.square()) + weight * kl

    loc, log_scale = minimised(objective, torch.ones(3), torch.full((3,), -1.5))
    read = ard_loss(loc / log_scale.exp(), weight)
    torch.testing.assert_close(read, 0.5 * CURVATURES * loc.square(), rtol=0.05, atol=0)
    started = ard_loss(ard_variance(CURVATURES, weight).rsqrt(), weight)
    torch.testing.assert_close(started, 0.5 * CURVATURES, rtol=1e-9, atol=0)


def test_ard_noise_that_is_next_to_none() -> None:
    """A ratio of 1e12 loses ½ w 1e24 nats, which single precision holds, and its fourth power does not."""
    found = ard_loss(torch.tensor([0.0, 1e12]), 2.0)
    assert found.tolist() == [0.0, pytest.approx(1e24, rel=1e-6)]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_log_uniform_noise(weight: float) -> None:
    a, b = -20.0, 0.0

    def objective(loc: Tensor, log_scale: Tensor) -> Tensor:
        q = TruncatedLogNormal(loc, log_scale.exp(), a, b)
        kl = torch.distributions.kl_divergence(q, LogUniform(a, b, like=loc))
        return 0.5 * CURVATURES * ((q.mean - 1).square() + q.variance) + weight * kl

    loc, log_scale = minimised(objective, torch.full((3,), -0.05), 0.5 * (weight / CURVATURES).log())
    read = log_uniform_loss(TruncatedLogNormal(loc, log_scale.exp(), a, b), weight)
    torch.testing.assert_close(read.double(), 0.5 * CURVATURES, rtol=0.05, atol=0)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_spike_noise(weight: float, tau: float) -> None:
    """A spike at weight w adds w/τ² to the curvature of its likelihood, and shrinks its location."""

    def objective(loc: Tensor, log_scale: Tensor) -> Tensor:
        scale = log_scale.exp()
        spike = torch.distributions.Normal(
            torch.zeros(3, dtype=torch.float64), torch.full((3,), tau, dtype=torch.float64)
        )
        kl = torch.distributions.kl_divergence(torch.distributions.Normal(loc, scale), spike)
        return 0.5 * CURVATURES * ((loc - 1).square() + scale.square()) + weight * kl

    _, log_scale = minimised(objective, torch.ones(3), torch.full((3,), -2.0))
    torch.testing.assert_close(spike_variance(CURVATURES, weight, tau), (2 * log_scale).exp(), rtol=1e-4, atol=0)
    read = spike_loss(torch.ones(3, dtype=torch.float64), log_scale.exp(), tau, weight)
    told_apart = 0.05 * weight / tau**2 < CURVATURES
    torch.testing.assert_close(read[told_apart], 0.5 * CURVATURES[told_apart], rtol=0.05, atol=0)


def best_odds(lost: Tensor, slab: Tensor, weight: float, prior: float) -> Tensor:
    """Logits of gates where closing costs `lost` nats, an open one its slab's KL, and their own KL counts `weight` times."""

    def objective(logit: Tensor) -> Tensor:
        gamma = torch.distributions.Bernoulli(logits=logit)
        other = torch.distributions.Bernoulli(logits=torch.full_like(logit, prior))
        return lost * (1 - gamma.probs) + weight * torch.distributions.kl_divergence(gamma, other) + slab * gamma.probs

    (logit,) = minimised(objective, torch.zeros(len(lost)))
    return logit


def planted() -> tuple[nn.Module, pb.ChannelTable, dict[str, Tensor]]:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    table = pb.channel_groups(net, torch.randn(2, 1, 8, 8))
    information = {
        "0": torch.tensor([0.0, 5.0, 50.0, 400.0, 900.0, 3000.0]),
        "2": torch.tensor([0.0, 2.0, 8.0, 30.0, 60.0, 200.0, 500.0, 2000.0]),
    }
    return net, table, information


@pytest.mark.parametrize("family", ["ard", "sbp", "ss-ig", "ss-gl"])
@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
def test_a_fit_starts_where_the_curvature_is_read_off_again(family: str, kl_weight: float) -> None:
    net, table, information = planted()
    prior, make, site = {
        "ard": (ARDNoise(), NormalNoise, "noise"),
        "sbp": (LogUniformNoise(), TruncatedLogNormalNoise, "noise"),
        "ss-ig": (SpikeSlab("theory", relative=True), SpikeSlabGuide, "gate"),
        "ss-gl": (SpikeSlab("theory", relative=True, slab="gl"), SpikeSlabGuide, "gate"),
    }[family]
    model = pb.BayesianModel(net, prior, data_size=2_000_000, groups=table)
    guide: Any = make(model)
    if site == "gate":  # worth more than the KL of the slabs, or all gates close
        information = {name: 1000 * f for name, f in information.items()}
    dense = table.cost(None)
    price = PricedKL({"macs": 0.6}, (float(dense.params), float(dense.macs)), site=site, bounds=(0.05, 1e6))
    price.begin(model, guide, information, kl_weight)
    slabs = guide.slab_kl() if site == "gate" else {}
    for name, f in information.items():
        weight = kl_weight * price.weights[name]
        mean, sd = (value.double() for value in guide.moments()[f"{name}.{site}"])
        if family == "ard":
            read, exact = ard_loss(mean / sd, weight), sd < 9.9
        elif family == "sbp":
            read, exact = log_uniform_loss(q := guide.posterior(f"{name}.noise"), weight), q.scale.detach() < 0.3
        else:
            odds, slab = guide.theta[f"{name}|gate"].detach().double(), kl_weight * slabs[name].double()
            exact = (odds.abs() < 14.9) & (slab < 0.25 * f.double())  # no bound of the start is met
            assert bool(exact.any()), (family, name)
            best = best_odds(0.5 * f.double(), slab, weight, guide._prior_odds[f"{name}.gate"])
            torch.testing.assert_close(odds[exact], best[exact], rtol=1e-3, atol=1e-2)
            continue
        assert bool(exact.any()), (family, name)
        torch.testing.assert_close(read.double()[exact], 0.5 * f.double()[exact], rtol=0.05, atol=1e-2)
    left = table.cost(price._needed(pb.inference.callbacks.FitState(model, guide))).macs
    assert float(left) <= 0.6 * float(dense.macs)


@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
def test_spikes_start_where_the_curvature_is_read_off_again(kl_weight: float) -> None:
    net, table, information = planted()
    guide = NormalNoise(pb.BayesianModel(net, SpikeNoise(0.2), data_size=20_000, groups=table))
    guide.start_at(information, {}, kl_weight)
    for name, f in information.items():
        mean, sd = (value.double() for value in guide.moments()[f"{name}.noise"])
        told_apart = f.double() > 0.05 * kl_weight / 0.2**2
        read = spike_loss(mean, sd, 0.2, kl_weight)[told_apart]
        torch.testing.assert_close(read, 0.5 * f.double()[told_apart], rtol=0.01, atol=0)


def test_the_start_does_not_drown_the_likelihood() -> None:
    """A goal that only ruinous noise would reach is left to dual ascent."""
    net, table, information = planted()
    model = pb.BayesianModel(net, ARDNoise(), data_size=100, groups=table)
    guide = NormalNoise(model)
    dense = table.cost(None)
    price = PricedKL({"macs": 0.1}, (float(dense.params), float(dense.macs)))
    price.begin(model, guide, information)
    noise = 0.0
    for name, f in information.items():
        mean, sd = guide.moments()[f"{name}.noise"]
        noise += float((0.5 * f * (sd.square() + (1 - mean).square()).clamp_max(1.0)).sum())
    assert noise < 0.06 * 100
