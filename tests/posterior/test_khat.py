"""k-hat where the answer is known: a conjugate posterior, and guides that are wrong by a known factor."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.likelihoods import Gaussian
from pyrobnn.posterior.khat import guide_khat
from pyrobnn.views.arviz import pareto_khat

NOISE = 0.5


def regression(dims: int = 2, n: int = 64) -> tuple[pb.BayesianModel, list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Linear regression with orthogonal inputs: the exact posterior is a product of Gaussians.

    Precision I + X'X / noise^2 and mean X'y / noise^2 / precision, by coordinate.
    """
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(n, dims))[0] * math.sqrt(n)
    y = x @ torch.tensor([1.0, -0.5] * (dims // 2)) + NOISE * torch.randn(n)
    net = nn.Sequential(nn.Linear(dims, 1, bias=False), nn.Flatten(0))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=n, likelihood=Gaussian(NOISE))
    precision = 1 + (x**2).sum(0) / NOISE**2
    mean = (x * y[:, None]).sum(0) / NOISE**2 / precision
    return model, [(x[:40], y[:40]), (x[40:], y[40:])], mean[None], precision.rsqrt()[None]


def mean_field(model: pb.BayesianModel, mean: Tensor, sd: Tensor) -> pb.guides.MeanField:
    guide = pb.guides.MeanField(model)
    guide.set_scale("0.weight", mean, sd)
    return guide


def test_exact_guide_has_equal_weights() -> None:
    model, batches, mean, sd = regression()
    check = guide_khat(model, mean_field(model, mean, sd), batches, "0.weight", draws=100)
    assert float(check.log_ratio.std()) < 2e-3  # log p(z, D) - log q(z) is the evidence, whatever z
    assert check.dimensions == 2
    # The evidence by its own formula: y ~ N(0, noise^2 I + X X').
    x, y = torch.cat([b[0] for b in batches]).double(), torch.cat([b[1] for b in batches]).double()
    cover = NOISE**2 * torch.eye(len(x), dtype=torch.float64) + x @ x.T
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(x), dtype=torch.float64), cover).log_prob(y)
    assert float(check.log_ratio.mean()) == pytest.approx(float(evidence), abs=0.02)


def test_wide_guide_is_good_and_narrow_guide_is_bad() -> None:
    """q = N(m, (s sd)^2) in one of two coordinates: the log ratio is z^2 (1 - s^2) / 2 for z ~ N(0, 1).

    k = 1 - s^2 in the limit of many draws, and scatters around less with few; so the reference is the
    same smoothing of the ratio's own formula, over many sets of as many draws.
    """
    model, batches, mean, sd = regression()
    factor, draws, found = torch.tensor([[1.0, 1.0]]), 300, {}
    for s in (0.3, 1.3):
        factor[0, 0] = s
        guide = mean_field(model, mean, sd * factor)
        seeds = range(4) if s < 1 else range(1)
        found[s] = [guide_khat(model, guide, batches, "0.weight", draws=draws, seed=seed).khat for seed in seeds]
    z = np.random.default_rng(0).normal(size=(80, draws))
    reference = np.array([pareto_khat(torch.from_numpy(row)) for row in 0.5 * (1 - 0.3**2) * z**2])
    error = reference.std(ddof=1) / math.sqrt(len(found[0.3]))
    assert abs(np.mean(found[0.3]) - reference.mean()) < 3 * error
    assert found[1.3][0] < 0.3 < reference.mean() - 3 * error  # bounded weights, and the test can tell


def test_narrow_guide_is_worse_in_more_dimensions() -> None:
    few, many = regression(2), regression(16)
    ks = [
        guide_khat(model, mean_field(model, mean, 0.7 * sd), batches, "*", draws=400).khat
        for model, batches, mean, sd in (few, many)
    ]
    assert ks[1] > ks[0] + 0.1


def test_other_sites_are_held_at_their_means() -> None:
    """Only the chosen site is drawn: the log ratio does not depend on how wide the other one is."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=50)
    batches = [(torch.randn(50, 3), torch.randint(2, (50,)))]
    narrow, wide = pb.guides.MeanField(model), pb.guides.MeanField(model)
    mean, sd = wide.moments()["0.weight"]
    wide.set_scale("0.weight", mean, 5 * sd)
    a = guide_khat(model, narrow, batches, "2.*", draws=50)
    b = guide_khat(model, wide, batches, "2.*", draws=50)
    assert a.dimensions == 8
    assert torch.allclose(a.log_ratio, b.log_ratio, atol=1e-4)
    assert not torch.allclose(a.log_ratio, guide_khat(model, wide, batches, "0.*", draws=50).log_ratio, atol=0.1)


def test_autoguide_and_function_agree_with_mean_field() -> None:
    model, batches, mean, sd = regression()
    auto = AutoNormal(model)
    x, y = batches[0]
    auto(x, y)
    with torch.no_grad():
        getattr(auto.locs, "0").weight.copy_(mean)
    getattr(auto.scales, "0").weight = 0.5 * sd  # a PyroParam: set in constrained form

    def by_hand(x: Tensor, y: Tensor | None = None) -> None:
        pyro.sample("0.weight", dist.Normal(mean, 0.5 * sd).to_event(2))

    checks = [
        guide_khat(model, guide, batches, "0.weight", draws=100, seed=2)
        for guide in (mean_field(model, mean, 0.5 * sd), auto, by_hand)
    ]
    for other in checks[1:]:
        assert torch.allclose(checks[0].log_ratio, other.log_ratio, atol=1e-3)
        assert other.khat == pytest.approx(checks[0].khat, abs=1e-3)


def test_pareto_khat_of_pareto_weights() -> None:
    """Weights u^-k have a Pareto tail of shape k."""
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (0.2, 0.5, 0.9):
        assert pareto_khat(-k * uniform.log()) == pytest.approx(k, abs=0.12)
    assert pareto_khat(torch.zeros(100)) == -math.inf


def test_bad_questions() -> None:
    model, batches, mean, sd = regression()
    guide = mean_field(model, mean, sd)
    with pytest.raises(pb.ConfigError, match=r"no site matches 'conv\*'; the model has 0.weight"):
        guide_khat(model, guide, batches, "conv*")
    with pytest.raises(pb.ConfigError, match="at least 25"):
        guide_khat(model, guide, batches, "0.weight", draws=10)


def test_joint_guides_have_their_density_counted() -> None:
    """Without data the prior is the posterior: a joint guide that is the prior has equal weights, a wide one has not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Flatten(0))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=8, likelihood=Gaussian(NOISE))
    batches = [(torch.zeros(8, 3), torch.zeros(8))]
    guide = AutoDiagonalNormal(model)
    model.initialise(batches[0], guide)
    with torch.no_grad():
        guide.loc.zero_()
    spread = {}
    for scale in (1.0, 1.5):
        guide.scale = torch.full_like(guide.loc, scale)
        spread[scale] = float(guide_khat(model, guide, batches, "*", draws=50).log_ratio.std())
    assert spread[1.0] < 1e-4 and spread[1.5] > 0.5
    with pytest.raises(pb.ConfigError, match="check all of them together"):
        guide_khat(model, guide, batches, "0.weight", draws=50)
