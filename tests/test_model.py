"""The model: what is random, what is trained, and what is left alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor, nn
from torch.optim import optimizer

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.inference.elbo import ELBO
from pyrobnn.priors.noise import ARDNoise, SpikeNoise


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(256), valid=full.valid.take(60), test=full.test.take(100))


def small() -> nn.Module:
    torch.manual_seed(0)
    return pb.nets.build("small_cnn", in_channels=1, image_size=8)


def batch(data: Data, size: int = 32) -> tuple[Tensor, Tensor]:
    return next(iter(data.train.batches(size)))


def gaussian_model(data: Data, net: nn.Module | None = None) -> pb.BayesianModel:
    net = net or small()
    groups = pb.channel_groups(net, data.example)
    return pb.BayesianModel(net, pb.priors.Gaussian("fan_in"), data_size=len(data.train), groups=groups)


def noise_model(data: Data, net: nn.Module | None = None) -> pb.BayesianModel:
    net = net or small()
    groups = pb.channel_groups(net, data.example)
    return pb.BayesianModel(net, SpikeNoise(1.0), data_size=len(data.train), groups=groups)


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# What the model holds


def test_random_parameters_are_buffers_and_the_net_is_a_copy(data: Data) -> None:
    net = small().eval()
    before, rng = snapshot(net), torch.get_rng_state()
    model = gaussian_model(data, net)
    assert torch.equal(torch.get_rng_state(), rng)
    kernels = {"conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"}
    assert set(model.held) == set(model.sites()) == kernels
    assert kernels.isdisjoint(dict(model.net.named_parameters()))
    assert kernels < set(dict(model.net.named_buffers()))
    pb.fit(model, pb.guides.MeanField(model), data, epochs=1, progress=False)
    assert same(snapshot(net), before) and not net.training
    assert all(p.grad is None for p in net.parameters())


def test_a_plain_function_is_a_prior(data: Data) -> None:
    def prior(view: Any) -> dict[str, Tensor]:
        weight = view.tensors["fc2.weight"]
        return {"fc2.weight": pyro.sample("fc2.weight", dist.Normal(torch.zeros_like(weight), 0.1).to_event(2))}

    model = pb.BayesianModel(small(), prior, data_size=10)
    assert model.held == ("fc2.weight",)
    x, y = batch(data)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    assert trace.nodes["obs"]["scale"] == pytest.approx(10 / 32)
    wrong = pb.BayesianModel(small(), lambda view: {"fc3.weight": torch.zeros(1)}, data_size=10)
    with pytest.raises(pb.ConfigError, match=r"'fc3.weight'.*no parameter"):
        wrong(x, y)


def test_deterministic_net_at_given_values(data: Data) -> None:
    model = gaussian_model(data).eval()
    start = model.initial_values()
    plain = model.deterministic(start)
    x, _ = batch(data)
    assert {n for n, _ in plain.named_parameters()} == {n for n, _ in small().named_parameters()}
    assert torch.allclose(plain.eval()(x), small().eval()(x), atol=1e-6)
    noisy = noise_model(data).eval()
    values = {name: torch.rand_like(value) for name, value in noisy.initial_values().items()}
    folded = noisy.deterministic(values).eval()
    assert torch.allclose(folded(x), pyro.condition(noisy, data=values)(x), atol=1e-6)


def test_data_size_is_checked() -> None:
    with pytest.raises(pb.ConfigError, match="data_size.*got 0"):
        pb.BayesianModel(small(), data_size=0)


# No dead parameter, in either road


@pytest.mark.parametrize("make", [gaussian_model, noise_model])
def test_after_one_backward_no_parameter_is_without_gradient(make: Any, data: Data) -> None:
    model = make(data)
    guide = pb.guides.MeanField(model)
    x, y = batch(data)
    ELBO().differentiable_loss(model, guide, x, y).backward()
    named = [*model.named_parameters(), *guide.named_parameters()]
    assert len(named) > 8 and [name for name, p in named if p.grad is None] == []


@pytest.mark.parametrize("make", [gaussian_model, noise_model])
@pytest.mark.parametrize("road", ["fit", "svi"])
def test_every_deterministic_tensor_moves(make: Any, road: str, data: Data) -> None:
    model = make(data)
    before = snapshot(model.net)
    if road == "fit":
        guide: Any = pb.guides.MeanField(model)
        pb.fit(model, guide, data, epochs=1, lr=1e-3, progress=False)
    else:
        guide = AutoNormal(model, init_scale=0.05)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        for x, y in data.train.batches(64):
            svi.step(x, y)
    parameters = dict(model.net.named_parameters())
    assert parameters and all(not torch.equal(before[n], p) for n, p in parameters.items())
    held = {name: dict(model.net.named_buffers())[name] for name in model.held}
    assert all(torch.equal(before[n], b) for n, b in held.items())


# Isolation


def test_fit_leaves_no_trace_in_the_process(data: Data) -> None:
    model = gaussian_model(data)
    setting = pyro.settings.get("module_local_params")
    torch.manual_seed(77)
    rng = torch.get_rng_state()
    for guide in (pb.guides.MeanField(model), AutoNormal(model)):
        pb.fit(model, guide, data, epochs=1, progress=False)
        pb.summarize(model, guide, draws=2)
    assert list(pyro.get_param_store().keys()) == []
    assert torch.equal(torch.get_rng_state(), rng)
    assert pyro.settings.get("module_local_params") == setting


def test_two_models_in_one_process(data: Data) -> None:
    def trained(model: pb.BayesianModel) -> tuple[Any, Any]:
        guide = AutoNormal(model, init_scale=0.05)
        pb.fit(model, guide, data, epochs=1, seed=4, progress=False)
        return model, guide

    alone = snapshot(trained(gaussian_model(data))[0].net)
    first, guide = trained(gaussian_model(data))
    after_first = snapshot(first.net), snapshot(guide)
    other, other_guide = trained(noise_model(data))
    assert same(alone, after_first[0])
    assert same(snapshot(first.net), after_first[0]) and same(snapshot(guide), after_first[1])
    again, _ = trained(gaussian_model(data))
    assert same(snapshot(again.net), alone)
    # A third model in a plain SVI script leaves the fitted ones alone as well, and they leave it alone.
    third = gaussian_model(data)
    svi = SVI(third, AutoNormal(third, init_scale=0.05), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(*batch(data))
    assert same(snapshot(first.net), after_first[0]) and same(snapshot(guide), after_first[1])
    stored = set(pyro.get_param_store().keys())
    pb.fit(other, other_guide, data, epochs=1, progress=False)
    assert set(pyro.get_param_store().keys()) == stored


# Guides written as functions


def hand_written(model: pb.BayesianModel) -> Any:
    start = {name: value.clone() for name, value in model.initial_values().items()}

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        for name, value in start.items():
            loc = pyro.param(f"{name}_loc", value.clone())
            scale = pyro.param(f"{name}_scale", torch.full_like(value, 0.05), constraint=dist.constraints.positive)
            pyro.sample(name, dist.Normal(loc, scale).to_event(value.dim()))

    return guide


@pytest.mark.parametrize("make", [gaussian_model, noise_model])
def test_a_function_with_params_is_trained_and_summarised(make: Any, data: Data) -> None:
    model = make(data)
    guide = hand_written(model)
    result = pb.fit(model, guide, data, epochs=3, lr=1e-2, progress=False)
    assert list(pyro.get_param_store().keys()) == []
    starts = model.initial_values()
    posterior = pb.summarize(model, guide, draws=3)
    assert set(posterior.sites) == set(starts)
    for name, site in posterior.sites.items():
        assert not torch.allclose(site.loc, starts[name].float())
        assert not torch.allclose(site.scale, torch.full_like(site.scale, 0.05))
        fitted = result.guide
        assert torch.allclose(site.loc, fitted.param(f"{name}_loc").detach())
        assert torch.allclose(site.scale, fitted.param(f"{name}_scale").detach())
    from_module = pb.summarize(model, result.guide, draws=3)
    assert all(torch.equal(from_module.sites[n].loc, s.loc) for n, s in posterior.sites.items())
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_a_function_under_svi_is_read_from_the_global_store(data: Data) -> None:
    model = noise_model(data)
    guide = hand_written(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), ELBO())
    for x, y in data.train.batches(64):
        svi.step(x, y)
    store = pyro.get_param_store()
    posterior = pb.summarize(model, guide, draws=0)
    for name, site in posterior.sites.items():
        assert torch.allclose(site.loc, store[f"{name}_loc"].detach())
        assert not torch.allclose(site.loc, torch.ones_like(site.loc))


# BatchNorm statistics


def counts(model: pb.BayesianModel) -> list[int]:
    return [int(b) for name, b in model.net.named_buffers() if name.endswith("num_batches_tracked")]


@pytest.mark.parametrize("make", [gaussian_model, noise_model])
@pytest.mark.parametrize("particles", [1, 3])
def test_statistics_move_once_per_step(make: Any, particles: int, data: Data) -> None:
    model = make(data)
    guide = AutoNormal(model, init_scale=0.01)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO(num_particles=particles))
    x, y = batch(data)
    svi.step(x, y)  # includes the guide's own set-up run
    assert counts(model) == [1, 1]
    svi.step(x, y)  # the same tensor again is another step
    assert counts(model) == [2, 2]


@pytest.mark.parametrize("make", [gaussian_model, noise_model])
def test_statistics_are_those_of_the_plain_net(make: Any, data: Data) -> None:
    """With a guide that hardly varies, three particles leave what one pass of the net leaves."""
    model, reference = make(data), small().train()
    x, y = batch(data)
    reference(x)
    start = init_to_value(values=model.initial_values())
    guide = AutoNormal(model, init_scale=1e-7, init_loc_fn=start)
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO(num_particles=3)).step(x, y)
    for name, buffer in reference.named_buffers():
        assert torch.allclose(dict(model.net.named_buffers())[name], buffer, atol=1e-5), name


def test_fit_moves_them_once_per_step(data: Data) -> None:
    model = gaussian_model(data)
    pb.fit(model, AutoNormal(model), data, epochs=2, batch_size=64, num_particles=2, progress=False)
    assert counts(model) == [8, 8]


def test_statistics_when_everything_is_random(data: Data) -> None:
    """No deterministic parameter is left whose version would tell one step from the next."""
    net = small()
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0, select="*"), data_size=len(data.train))
    assert not list(model.net.parameters())
    guide = AutoNormal(model, init_scale=0.01)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO(num_particles=2))
    x, y = batch(data)
    svi.step(x, y)
    svi.step(x, y)
    assert counts(model) == [2, 2]
    assert not optimizer._global_optimizer_post_hooks  # nothing that other optimisers would run too


def test_initialise_restores_buffers_and_rng(data: Data) -> None:
    model = gaussian_model(data)
    before, rng = snapshot(model.net), torch.get_rng_state()
    guide = AutoNormal(model)
    with torch.no_grad():
        model.initialise(batch(data), guide)
    assert same(snapshot(model.net), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert guide.locs is not None and len(list(guide.parameters())) == 8


def test_eval_mode_leaves_statistics(data: Data) -> None:
    model = gaussian_model(data).eval()
    before = snapshot(model.net)
    model(*batch(data))
    assert same(snapshot(model.net), before)


# Ordinary Pyro


def test_predictive_and_deepcopy(data: Data) -> None:
    model = gaussian_model(data).eval()
    guide = AutoNormal(model, init_scale=0.01)
    x, y = batch(data)
    guide(x, y)
    draws = Predictive(model, guide=guide, num_samples=5, return_sites=("obs", "_RETURN"))(x)
    assert draws["obs"].shape == (5, 32) and draws["_RETURN"].shape == (5, 32, 10)
    assert int(draws["obs"].max()) <= 9
    twin = copy.deepcopy(model)
    assert set(twin.sites()) == set(model.sites())


def test_noise_prior_without_groups_says_what_to_pass(data: Data) -> None:
    model = pb.BayesianModel(small(), ARDNoise(), data_size=10)
    with pytest.raises(pb.ConfigError, match="channel_groups"):
        model.sites()
