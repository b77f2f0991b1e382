"""The three-layer prior: its sites, its draws, its densities."""

from __future__ import annotations

import pyro
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from pyrobnn.distributions.markov import run_length
from pyrobnn.errors import ConfigError
from pyrobnn.model import BayesianModel
from pyrobnn.priors.turbo import GatedGamma, PrecisionPrior, Transitions, Turbo, matrix_shape


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5))


@pytest.mark.parametrize("structure", ["two-level", "crossing"])
def test_sites_and_shapes(structure: str) -> None:
    model = BayesianModel(small_net(), Turbo(structure=structure), data_size=10)
    shapes = {name: tuple(site["value"].shape) for name, site in model.sites().items()}
    assert shapes == {
        "0.weight.support": (6, 18),
        "0.weight.precision": (6, 2, 3, 3),
        "0.weight": (6, 2, 3, 3),
        "3.weight.support": (5, 96),
        "3.weight.precision": (5, 96),
        "3.weight": (5, 96),
    }
    trace = pyro.poutine.trace(model).get_trace(torch.randn(3, 2, 6, 6), torch.tensor([0, 1, 2]))
    assert torch.isfinite(trace.log_prob_sum())


def test_draws_have_clustered_large_weights() -> None:
    """Weights outside the support are tiny, those inside have runs much longer than chance."""
    net = nn.Sequential(nn.Linear(200, 100))
    prior = Turbo(transitions=Transitions(0.05, 0.1, 0.1, 0.2), relative=False)
    model = BayesianModel(net, prior, data_size=10)
    torch.manual_seed(1)
    sites = {}
    with pyro.poutine.trace() as tracer:
        model.values()
    for name, site in tracer.trace.nodes.items():
        sites[name] = site["value"]
    support, weight = sites["0.weight.support"], sites["0.weight"]
    assert support.mean().item() == pytest.approx(1 / 9, abs=0.05)
    on, off = weight[support > 0].abs(), weight[support == 0].abs()
    # |w| of a Γ(1, b) precision is Student-t with 2 degrees of freedom and scale √b: median 0.816 √b.
    assert on.median().item() == pytest.approx(0.816, rel=0.1)
    assert off.median().item() == pytest.approx(0.816 * 1e-5**0.5, rel=0.1)
    mean, independent = run_length(weight.abs() > 0.1)
    assert mean > 3 * independent


def test_relative_units_follow_the_tensor_and_survive_a_cut() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight.fill_(0.5)
    prior = Turbo()
    prior.random(net)
    assert prior.precision_of("0.weight").b == pytest.approx(0.25)
    assert prior.precision_of("0.weight").b_off == pytest.approx(0.25e-5)
    small = prior.shrink(None, None)
    with torch.no_grad():
        net[0].weight.fill_(5.0)
    small.random(net)
    assert small.precision_of("0.weight").b == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="a new prior for each model"):
        prior.random(net)


def test_gated_gamma_is_the_published_mixture() -> None:
    prior = PrecisionPrior(2.0, 1.5, 1.2, 0.01)
    support = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    gamma = GatedGamma(support, prior, 2)
    value = torch.tensor([[0.3, 50.0, 2.0], [120.0, 3.0, 0.9]])
    expected = sum(
        stats.gamma(prior.a, scale=1 / prior.b).logpdf(v)
        if s
        else stats.gamma(prior.a_off, scale=1 / prior.b_off).logpdf(v)
        for s, v in zip(support.flatten().tolist(), value.flatten().tolist(), strict=True)
    )
    assert gamma.log_prob(value).item() == pytest.approx(expected, rel=1e-5)
    one = GatedGamma(torch.tensor([1.0]), prior, 1)
    total, _ = integrate.quad(lambda r: one.log_prob(torch.tensor([r])).exp().item(), 1e-9, 40)
    assert total == pytest.approx(1.0, abs=1e-5)
    torch.manual_seed(0)
    draws = gamma.sample((20_000,))
    mean = torch.where(support > 0, prior.a / prior.b, prior.a_off / prior.b_off)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0.03, atol=0)
    assert gamma.expand([4]).sample().shape == (4, 2, 3)


def test_matrix_shape() -> None:
    assert matrix_shape(torch.Size([10])) == (10, 1)
    assert matrix_shape(torch.Size([10, 4, 3, 3])) == (10, 36)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="strictly between"):
        Transitions(p01=0.0)
    with pytest.raises(ConfigError, match="larger precision"):
        PrecisionPrior(b_off=2.0)
    with pytest.raises(ConfigError, match="must be positive"):
        PrecisionPrior(a=-1.0)
    with pytest.raises(ConfigError, match="structure"):
        Turbo(structure="lattice")
