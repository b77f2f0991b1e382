"""Every prior with stock Pyro: AutoGuides, SVI, Predictive, poutine, NUTS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError

P = pb.priors
PRIORS: dict[str, Callable[..., Any]] = {
    "gaussian": P.Gaussian,
    "scale-mixture": P.ScaleMixture,
    "laplace": P.Laplace,
    "capped-l1": P.CappedL1,
    "tensor-normal": P.TensorNormal,
    "ard": P.ARDNoise,
    "log-uniform": P.LogUniformNoise,
    "two-spike": P.TwoSpikeNoise,
    "spike": P.SpikeNoise,
    "ss-ig": lambda **o: P.SpikeSlab(gates="hard-concrete", **o),
    "ss-gl": lambda **o: P.SpikeSlab(gates="hard-concrete", slab="gl", **o),
    "ss-ghs": lambda **o: P.SpikeSlab(gates="hard-concrete", slab="ghs", **o),
    "ss-edge": lambda **o: P.EdgeSpikeSlab(gates="hard-concrete", **o),
    "turbo": lambda **o: P.Turbo(form="marginal", **o),
}
ON_WEIGHTS = ("gaussian", "scale-mixture", "laplace", "capped-l1", "tensor-normal", "ss-edge", "turbo")
X, Y = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 3))


def small_model(prior: Any) -> pb.BayesianModel:
    net = small_net()
    return pb.BayesianModel(net, prior, data_size=16, groups=pb.channel_groups(net, X[:2]))


@pytest.mark.parametrize("family", [AutoNormal, AutoDelta, AutoLowRankMultivariateNormal])
@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_with_every_autoguide(name: str, family: Any) -> None:
    model = small_model(PRIORS[name]())
    guide = pb.guides.auto(model, family)
    optim = pyro.optim.Adam({"lr": 1e-3})
    svi = SVI(model, guide, optim, Trace_ELBO())
    losses = [svi.step(X, Y) for _ in range(20)]
    assert torch.isfinite(torch.tensor(losses)).all()
    assert Predictive(model, guide=guide, num_samples=2)(X)["obs"].shape == (2, 16)
    trace = poutine.trace(poutine.replay(model, trace=poutine.trace(guide).get_trace(X, Y))).get_trace(X, Y)
    assert torch.isfinite(trace.log_prob_sum())
    posterior = pb.summarize(model, guide, draws=2)
    gated = name.startswith("ss-")
    assert all(c.statistic == "inclusion" for c in posterior.channels.values()) == gated
    small = pb.compact(model.deterministic({}), pb.plan(posterior, threshold=0.5), X[:2])
    assert small(X).shape == (16, 3)


@pytest.mark.parametrize("name", PRIORS)
def test_stock_autonormal_takes_every_prior_as_it_is(name: str) -> None:
    """Without our starting point too: the continuous forms are ordinary Pyro models."""
    model = small_model(PRIORS[name]())
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert torch.isfinite(torch.tensor([svi.step(X, Y) for _ in range(2)])).all()


@pytest.mark.parametrize("name", PRIORS)
def test_nuts_on_a_few_channels(name: str) -> None:
    """Noise and gates of one group of three channels, or the weights of the last layer; the rest stays put."""
    groups = {"groups": "0"}
    options = {"select": "6.weight"} if name in ON_WEIGHTS else groups
    model = small_model(PRIORS[name](**options, **({"select": None} if name[3:] in ("ig", "gl", "ghs") else {})))
    model.eval().requires_grad_(False)
    kernel = NUTS(model, init_strategy=pb.guides.initial_loc(model), max_tree_depth=2)
    chain = MCMC(kernel, num_samples=3, warmup_steps=3, disable_progbar=True)
    chain.run(X, Y)
    draws = chain.get_samples()
    assert set(draws) == set(model.sites())
    assert all(torch.isfinite(value).all() for value in draws.values())


@pytest.mark.parametrize(
    "family",
    [AutoNormal, AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoLaplaceApproximation],
)
def test_starts_at_the_network(family: Any) -> None:
    """Means are the trained weights, exactly, before the first step and without a batch."""
    model = small_model(P.Gaussian())
    guide = pb.guides.auto(model, family)
    medians = guide() if family is AutoLaplaceApproximation else guide.median()
    for name, value in small_net().named_parameters():
        if name in medians:
            assert torch.equal(medians[name], value)
    assert list(guide.parameters())


def test_scales_are_a_share_of_each_tensor() -> None:
    model = small_model(P.Gaussian())
    wanted = {name: 0.05 * value.square().mean().sqrt() for name, value in model.initial_values().items()}
    for family in (AutoNormal, AutoDiagonalNormal):
        guide = pb.guides.auto(model, family, init_scale=0.05)
        posterior = pb.summarize(model, guide, draws=0)
        for name, site in posterior.sites.items():
            rtol = 1e-4 if family is AutoNormal else 0.25  # of 256 draws
            assert torch.allclose(site.scale.square().mean().sqrt(), wanted[name], rtol=rtol)
    guide = pb.guides.auto(model, AutoLowRankMultivariateNormal, init_scale=0.05, rank=3)
    spread = guide.get_posterior().variance.sqrt().detach()
    start = torch.cat([wanted[name].expand(value.numel()) for name, value in model.initial_values().items()])
    assert float((spread / start).square().mean()) == pytest.approx(1.0, rel=0.1)


def test_initialising_leaves_statistics_and_random_state_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 3))
    model = pb.BayesianModel(net, P.Gaussian(), data_size=16)
    before, state = {k: v.clone() for k, v in model.net.state_dict().items()}, torch.get_rng_state()
    pb.guides.auto(model, AutoNormal)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())


def test_noise_at_the_end_of_its_support_starts_inside() -> None:
    model = small_model(P.LogUniformNoise())
    median = pb.guides.auto(model).median()["0.noise"]
    assert (median < 1).all() and (median > 0.99).all()


@pytest.mark.parametrize("prior", [P.SpikeSlab(), P.SpikeSlab(slab="gl"), P.EdgeSpikeSlab(), P.Turbo()])
def test_discrete_form_is_refused_with_the_way_out(prior: Any) -> None:
    model = small_model(prior)
    with pytest.raises(ConfigError, match=r"is discrete.*gates='hard-concrete'; Turbo: form='marginal'"):
        pb.guides.auto(model)
    with pytest.raises(ConfigError, match=r"is discrete"):
        AutoNormal(model, init_loc_fn=pb.guides.initial_loc(model))(X, Y)


def test_what_it_cannot_start_is_refused() -> None:
    model = small_model(P.Gaussian())
    with pytest.raises(ConfigError, match=r"that has a location.*got 'AutoIAFNormal'"):
        pb.guides.auto(model, AutoIAFNormal)
    with pytest.raises(ConfigError, match=r"init_scale must be positive, got 0"):
        pb.guides.auto(model, init_scale=0)
    with pytest.raises(ConfigError, match=r"no latent site"):
        pb.guides.auto(pb.BayesianModel(small_net(), data_size=16))


@pytest.mark.parametrize("kind", ["parallel", "vectorised"])
def test_several_draws_at_once_are_refused_in_one_line(kind: str) -> None:
    model = small_model(P.Gaussian())
    guide = pb.guides.auto(model)
    with pytest.raises(ConfigError, match=r"one draw at a time.*parallel=False.*vectorize_particles=False"):
        if kind == "parallel":
            Predictive(model, guide=guide, num_samples=3, parallel=True)(X)
        else:
            elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
            SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo).step(X, Y)


def test_every_prior_and_guide_is_found_by_name() -> None:
    """Each subclass that the package defines is exported by the folder that defines it."""

    def family(base: type) -> set[type]:
        return {base}.union(*(family(sub) for sub in base.__subclasses__()))

    for package, base in ((pb.priors, P.Prior), (pb.guides, pb.guides.Guide)):
        own = {c.__name__ for c in family(base) if c.__module__.startswith(package.__name__) and c.__name__[0] != "_"}
        assert own - {"ChannelNoise", "SupportFactors"} <= set(package.__all__)


def test_a_prior_that_is_a_function_with_sites_of_its_own() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def prior(view: Any) -> dict[str, torch.Tensor]:
        noise = pyro.sample("0.noise", pyro.distributions.LogNormal(0.5 * torch.ones(4), 0.1).to_event(1))
        weight = pyro.sample("2.weight", pyro.distributions.Normal(torch.zeros(2, 4), 1.0).to_event(2))
        return {"2.weight": weight * noise}

    guide = pb.guides.auto(pb.BayesianModel(net, prior, data_size=10))
    median = guide.median()
    assert torch.equal(median["2.weight"], net[2].weight)
    # Pyro's median of a LogNormal is estimated from draws.
    assert torch.allclose(median["0.noise"].log(), torch.full((4,), 0.5), atol=0.15)
