"""Evidence of channels under their own priors: against quadrature, search, conjugate answers, at any weight of the KL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.distributions import ARD, LogUniform, TwoSpike
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.guides.noise import NormalNoise, TruncatedLogNormalNoise
from pyrobnn.priors.gaussian import Gaussian
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise, SpikeNoise, TwoSpikeNoise
from pyrobnn.summary.evidence import channel_evidence, gate_evidence, untempered, weight_evidence
from pyrobnn.summary.saliency import log_evidence

NATS = torch.tensor([0.05, 0.5, 5.0, 40.0])
THETA = np.linspace(-12, 12, 600_001)


def integral(nats: float, prior: np.ndarray) -> float:
    """log ∫ exp(−nats (θ − 1)²) p(θ) dθ."""
    return math.log(trapezoid(np.exp(-nats * (THETA - 1) ** 2) * prior, THETA))


def normal(mean: float, sd: float) -> np.ndarray:
    return np.exp(-0.5 * ((THETA - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("s", [0.2, 0.8, 3.0])
def test_gaussian_priors_by_quadrature(s: float) -> None:
    expected = [integral(v, normal(0, s)) + v for v in NATS.tolist()]
    for found in (gate_evidence(NATS, s), channel_evidence(NATS, torch.distributions.Normal(torch.zeros(4), s))):
        assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_ard_takes_the_best_width() -> None:
    """Whether any width is better than none, and by how much, by search over widths."""
    widths = np.geomspace(1e-3, 30, 400)
    for value, found in zip(NATS.tolist(), channel_evidence(NATS, ARD()).tolist(), strict=True):
        gains = [-0.5 * math.log1p(2 * value * w * w) + 0.5 * (2 * value) ** 2 / (2 * value + w**-2) for w in widths]
        if max(gains) > 1e-5:
            assert found == pytest.approx(max(gains), rel=1e-3)
        else:
            assert found <= 0
    falls = channel_evidence(torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7]), ARD())
    assert bool((falls.diff() > 0).all()) and float(falls[3]) == 0.0


@pytest.mark.parametrize(("pi", "tau"), [(0.5, 0.1), (0.1, 0.4), (0.9, 1.0)])
def test_two_spikes_have_posterior_odds(pi: float, tau: float) -> None:
    found = channel_evidence(NATS, TwoSpike(torch.tensor(pi), torch.tensor(tau)))
    for value, odds in zip(NATS.tolist(), found.tolist(), strict=True):
        on, off = integral(value, normal(1, tau)), integral(value, normal(0, tau))
        assert odds == pytest.approx(on - off + math.log(pi / (1 - pi)), abs=1e-3)


def test_log_uniform_noise_has_the_evidence_of_a_gaussian_gate() -> None:
    assert torch.equal(channel_evidence(NATS, LogUniform(-20.0, 0.0)), gate_evidence(NATS))


@pytest.mark.parametrize("kl_weight", [0.01, 0.3, 1.0, 5.0])
def test_a_cold_posterior_says_the_curvature_it_was_fitted_to(kl_weight: float) -> None:
    """Conjugate: what is fitted at weight w, untempered, is what is fitted at weight 1."""
    h, peak, s = torch.tensor([0.0, 3.0, 400.0]).double(), torch.tensor([0.3, -0.7, 0.5]).double(), 0.5

    def posterior(w: float) -> tuple[Tensor, Tensor]:
        precision = h / w + s**-2
        return h / w * peak / precision, precision.rsqrt()

    for found, expected in zip(untempered(*posterior(kl_weight), s, kl_weight), posterior(1.0), strict=True):
        torch.testing.assert_close(found, expected)
    exact = log_evidence(*posterior(1.0), s)
    torch.testing.assert_close(weight_evidence(*posterior(kl_weight), s, kl_weight), exact)
    assert float(exact[0]) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
def test_summaries_count_the_weight_that_the_fit_ended_with(kl_weight: float) -> None:
    """Spikes at 0.1 of the KL read 200 nats as 2,000 where the weight is not counted."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    table = pb.channel_groups(net, torch.randn(2, 1, 8, 8))
    information = {"0": torch.tensor([60.0, 400.0, 900.0, 3000.0])}
    families = [
        (SpikeNoise(0.5), NormalNoise),
        (TwoSpikeNoise(tau=0.5), NormalNoise),
        (ARDNoise(), NormalNoise),
        (LogUniformNoise(), TruncatedLogNormalNoise),
    ]
    for prior, guide_of in families:
        model = pb.BayesianModel(net, prior, data_size=1000, groups=table)
        guide = guide_of(model)
        guide.start_at(information, {}, kl_weight)
        model.history = [{"kl_weight": 0.0}, {"kl_weight": kl_weight}]
        summary = pb.summarize(model, guide, draws=0).channels["0"]
        torch.testing.assert_close(summary.nats, 0.5 * information["0"], rtol=0.05, atol=0)
        expected = channel_evidence(summary.nats, prior.distribution(torch.zeros(())))
        torch.testing.assert_close(summary.evidence, expected)


def test_weights_of_a_cold_fit_have_the_evidence_of_the_likelihood() -> None:
    """A mean-field posterior at the optimum of NLL + w KL: the same evidence at every w."""
    found = []
    for kl_weight in (1.0, 0.02):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        table = pb.channel_groups(net, torch.randn(2, 1, 8, 8))
        model = pb.BayesianModel(net, Gaussian(0.3), data_size=1000, groups=table)
        guide = MeanField(model)
        for name, (mean, _) in guide.moments().items():
            h = 40.0 / kl_weight
            precision = h + 0.3**-2
            guide.set_scale(name, mean * h / precision, torch.full_like(mean, precision**-0.5))
        model.history = [{"kl_weight": kl_weight}]
        found.append(pb.summarize(model, guide, draws=0).channels["0"].evidence)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
