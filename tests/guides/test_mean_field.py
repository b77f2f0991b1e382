"""The mean-field guide: families, moments, start, layout and cutting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.guides.base import LikeTensor, PerChannel
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.inference.elbo import ELBO
from pyrobnn.priors.noise import SpikeNoise


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
    )


def model_with(prior: Any) -> pb.BayesianModel:
    net = small()
    return pb.BayesianModel(net, prior, data_size=20, groups=pb.channel_groups(net, torch.randn(2, 1, 4, 4)))


def mixed(view: Any) -> Mapping[str, Tensor]:
    gain = pyro.sample("gain", dist.Gamma(torch.full((3,), 3.0), 2.0).to_event(1))
    shift = pyro.sample("shift", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    return {"5.bias": view.tensors["5.bias"] * gain + shift}


def test_start_is_the_trained_net() -> None:
    model = model_with(SpikeNoise(1.0, weights=pb.priors.Gaussian(0.5)))
    guide = MeanField(model, init_scale=0.1)
    assert set(guide.moments()) == {"0.weight", "2.weight", "5.weight", "0.noise", "2.noise"}
    for name, (mean, sd) in guide.moments().items():
        start = model.initial_values()[name]
        assert torch.equal(mean, start)
        assert torch.allclose(sd, torch.full_like(sd, 0.1 * float(start.square().mean().sqrt())))
    net = pb.deterministic_net(model, guide)
    x = torch.randn(4, 1, 4, 4)
    assert torch.allclose(net(x), small()(x), atol=1e-6)


def test_own_start_and_scale_at_zero() -> None:
    model = model_with(SpikeNoise(1.0))
    guide = MeanField(model, init_scale=0.2, init={"0.noise": torch.zeros(4)})
    mean, sd = guide.moments()["0.noise"]
    assert torch.equal(mean, torch.zeros(4)) and torch.allclose(sd, torch.full((4,), 0.2))


def test_draws_have_the_moments_it_says() -> None:
    model = pb.BayesianModel(small(), mixed, data_size=20)
    guide = MeanField(model, init_scale=0.5)
    with torch.no_grad():
        guide.loc["gain"].copy_(torch.tensor([-0.5, 0.0, 0.8]))
        guide.loc["shift"].copy_(torch.tensor([-1.0, 0.0, 2.0]))
    draws = [guide() for _ in range(4000)]
    for name, (mean, sd) in guide.moments().items():
        values = torch.stack([d[name].detach() for d in draws])
        assert torch.all((values.mean(0) - mean).abs() < 4.5 * sd / 4000**0.5)
        assert torch.allclose(values.std(0), sd, rtol=0.15)
    assert all(bool((d["gain"] > 0).all()) for d in draws)


def test_set_scale_matches_moments() -> None:
    model = pb.BayesianModel(small(), mixed, data_size=20)
    guide = MeanField(model)
    mean, sd = torch.tensor([0.5, 2.0, 4.0]), torch.tensor([0.1, 0.5, 3.0])
    for site in ("gain", "shift"):
        guide.set_scale(site, mean, sd)
        found = guide.moments()[site]
        assert torch.allclose(found[0], mean, rtol=1e-4) and torch.allclose(found[1], sd, rtol=1e-4)


@pytest.mark.parametrize(("prior", "exact_kl"), [(dist.Gamma(3.0, 2.0), True), (dist.HalfCauchy(1.5), False)])
def test_kl_of_a_positive_site_by_quadrature(prior: Any, exact_kl: bool) -> None:
    """LogNormal against Gamma is closed-form; against half-Cauchy the sampled term is right on average."""

    def sites(view: Any) -> Mapping[str, Tensor]:
        gain = pyro.sample("gain", prior.expand([3]).to_event(1))
        shift = pyro.sample("shift", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        return {"5.bias": view.tensors["5.bias"] * gain + shift}

    model = pb.BayesianModel(small(), sites, data_size=20)
    guide = MeanField(model, init_scale=0.3)
    with torch.no_grad():
        guide.loc["gain"].fill_(0.4)
    x, y = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    terms = torch.stack([ELBO().parts(model, guide, x, y).kl["gain"].detach() for _ in range(800)])
    u = torch.linspace(0.4 - 8 * 0.3, 0.4 + 8 * 0.3, 4001, dtype=torch.float64)
    q = dist.Normal(torch.tensor(0.4, dtype=torch.float64), 0.3).log_prob(u)
    p = prior.log_prob(u.exp()) + u
    exact = 3 * float(torch.trapezoid(q.exp() * (q - p), u))
    assert abs(float(terms.mean()) - exact) < 4.5 * float(terms.std()) / 800**0.5 + 1e-4
    parts = ELBO().parts(model, guide, x, y)
    assert parts.closed_form == ({"gain", "shift"} if exact_kl else {"shift"})
    mean, sd = (t.detach() for t in guide.moments()["shift"])
    exact_shift = torch.log(2.0 / sd) + (sd**2 + mean**2) / 8 - 0.5
    assert torch.allclose(parts.kl["shift"].detach(), exact_shift.sum())


def test_layout_and_cut() -> None:
    model = model_with(SpikeNoise(1.0, weights=pb.priors.Gaussian(0.5)))
    guide = MeanField(model)
    assert guide.layout["loc.2|weight"] == LikeTensor("2.weight")
    assert guide.layout["log_scale.0|noise"] == PerChannel("0")
    assert set(guide.layout) == {name for name, _ in guide.named_parameters()}
    plan = pb.PruningPlan({"0": [1, 3], "2": [0, 4, 5]}, {"0": 4, "2": 6})
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.copy_(torch.randn_like(parameter))
    guide.loc["0|noise"].requires_grad_(False)
    small_guide = guide.shrink(model.groups, plan)
    columns = [4 * c + k for c in (0, 4, 5) for k in range(4)]
    for part in ("loc", "log_scale"):
        old, new = getattr(guide, part), getattr(small_guide, part)
        assert torch.equal(new["0|weight"], old["0|weight"][[1, 3]])
        assert torch.equal(new["2|weight"], old["2|weight"][[0, 4, 5]][:, [1, 3]])
        assert torch.equal(new["5|weight"], old["5|weight"][:, columns])
        assert torch.equal(new["0|noise"], old["0|noise"][[1, 3]])
        assert torch.equal(new["2|noise"], old["2|noise"][[0, 4, 5]])
    assert not small_guide.loc["0|noise"].requires_grad and small_guide.loc["2|noise"].requires_grad
    assert guide.loc["2|weight"].shape == (6, 4, 3, 3)
    guide.loc["0|noise"].requires_grad_(True)
    shrunk, again = pb.shrink(model, guide, plan)
    x, y = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    loss = ELBO().differentiable_loss(shrunk, again, x, y)
    loss.backward()
    assert bool(torch.isfinite(loss)) and again.loc["2|weight"].grad.shape == (3, 2, 3, 3)


def test_the_cut_pair_computes_what_the_masked_one_computes() -> None:
    model = model_with(SpikeNoise(1.0, weights=pb.priors.Gaussian(0.5)))
    guide = MeanField(model)
    plan = pb.PruningPlan({"0": [1, 3], "2": [0, 4, 5]}, {"0": 4, "2": 6})
    shrunk, small_guide = pb.shrink(model, guide, plan)
    x = torch.randn(3, 1, 4, 4)
    masked = pb.mask(pb.deterministic_net(model, guide), plan, None, groups=model.groups)
    assert torch.allclose(pb.deterministic_net(shrunk, small_guide)(x), masked(x), atol=1e-6)
    again, other = pb.shrink(model, guide, plan, copy=False)
    assert again.net is model.net and shrunk.net is not model.net
    for one, two in ((shrunk, again), (small_guide, other)):
        assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scale_is_checked(scale: float) -> None:
    with pytest.raises(ConfigError, match="init_scale must be positive"):
        MeanField(model_with(SpikeNoise(1.0)), init_scale=scale)


def test_other_supports_are_refused() -> None:
    def bounded(view: Any) -> Mapping[str, Tensor]:
        gate = pyro.sample("gate", dist.Beta(torch.full((3,), 2.0), 2.0).to_event(1))
        return {"5.bias": view.tensors["5.bias"] * gate}

    with pytest.raises(ConfigError, match=r"'gate' has support.*AutoNormal"):
        MeanField(pb.BayesianModel(small(), bounded, data_size=20))


def test_the_estimate_of_a_site_named_after_a_tensor_with_dots() -> None:
    """Names with dots become ParameterDict keys and come back in state_dict."""
    model = model_with(pb.priors.Gaussian(0.5))
    guide = MeanField(model)
    other = MeanField(model, init_scale=0.7)
    other.load_state_dict(guide.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(guide.parameters(), other.parameters(), strict=True))
