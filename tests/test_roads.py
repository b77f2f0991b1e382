"""Two roads to a compact net: the package's own loop, and stock Pyro scripts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.priors.noise import SpikeNoise


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(320), valid=full.valid.take(60), test=full.test.take(100))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return pb.nets.build("small_cnn", in_channels=1, image_size=8)


def cut_is_exact(model: pb.BayesianModel, guide: Any, table: pb.ChannelTable, plan: pb.PruningPlan, x: Tensor) -> None:
    """The compact net is smaller and computes what the masked one computes."""
    mean = pb.deterministic_net(model, guide).eval()
    masked = pb.mask(mean, plan, None, groups=table).eval()
    small = pb.compact(mean, plan, x, groups=table).eval()
    assert not plan.is_full
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in mean.parameters())
    assert small.conv1.out_channels == len(plan.keep["conv1"])
    with torch.no_grad():
        assert torch.allclose(small(x), masked(x), atol=1e-5)
        assert not torch.allclose(small(x), mean(x), atol=1e-3)


def test_stock_script(data: Data, net: nn.Module) -> None:
    """SVI + AutoNormal + Trace_ELBO + Predictive, as anyone would write it."""
    groups = pb.channel_groups(net, data.example)
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=len(data.train), groups=groups)
    start = init_to_value(values=model.initial_values())
    guide = AutoNormal(model, init_loc_fn=start, init_scale=0.02)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 3e-3}), Trace_ELBO())
    losses = []
    for _ in range(4):
        losses.append(sum(svi.step(x, y) for x, y in data.train.batches(64)))
    model.eval()
    x = data.test.normalise(data.test.images)
    probs = Predictive(model, guide=guide, num_samples=8, return_sites=("_RETURN",))(x)["_RETURN"].softmax(-1).mean(0)
    accuracy = float((probs.argmax(-1) == data.test.labels).float().mean())
    posterior = pb.summarize(model, guide)
    plan = pb.plan(posterior, target_macs=0.5, groups=groups)
    assert losses[-1] < losses[0] and accuracy > 0.4
    medians = guide.median()
    assert all(torch.allclose(site.loc, medians[name].detach()) for name, site in posterior.sites.items())
    cut_is_exact(model, guide, groups, plan, x)


def test_stock_script_with_a_hand_written_guide(data: Data, net: nn.Module) -> None:
    groups = pb.channel_groups(net, data.example)
    model = pb.BayesianModel(net, SpikeNoise(1.0), data_size=len(data.train), groups=groups)

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        for group in groups:
            loc = pyro.param(f"{group.name}.loc", torch.ones(group.channels))
            scale = pyro.param(
                f"{group.name}.scale", torch.full((group.channels,), 0.3), constraint=dist.constraints.positive
            )
            pyro.sample(f"{group.name}.noise", dist.Normal(loc, scale).to_event(1))

    before = {name: p.clone() for name, p in model.net.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        for x, y in data.train.batches(64):
            svi.step(x, y)
    assert all(not torch.equal(before[name], p) for name, p in model.net.named_parameters())
    posterior = pb.summarize(model, guide)
    store = pyro.get_param_store()
    for group in groups:
        channel = posterior.channels[group.name]
        wanted = (store[f"{group.name}.loc"].abs() / store[f"{group.name}.scale"]).detach()
        assert channel.statistic == "snr" and torch.allclose(channel.snr, wanted)
        assert not torch.equal(store[f"{group.name}.loc"].detach(), torch.ones(group.channels))
    plan = pb.plan(posterior, rule="snr", threshold=float(posterior.channels["conv1"].snr.median()))
    for name, units in plan.keep.items():
        line = float(posterior.channels["conv1"].snr.median())
        wanted = [k for k, value in enumerate(posterior.channels[name].snr.tolist()) if value >= line]
        assert units == wanted or (not wanted and len(units) == 1)
    cut_is_exact(model, guide, groups, plan, data.example)


@pytest.mark.parametrize("family", [AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoDelta])
@pytest.mark.parametrize("road", ["fit", "svi"])
def test_autoguides_on_channel_sites(family: Any, road: str, data: Data, net: nn.Module) -> None:
    groups = pb.channel_groups(net, data.example)
    model = pb.BayesianModel(net, SpikeNoise(1.0), data_size=len(data.train), groups=groups)
    start = init_to_value(values=model.initial_values())
    guide = family(model, init_loc_fn=start, **({} if family is AutoDelta else {"init_scale": 0.3}))
    if road == "fit":
        result = pb.fit(model, guide, data, epochs=2, batch_size=64, lr=1e-2, progress=False)
        assert result.guide is guide and len(list(pyro.get_param_store().keys())) == 0
    else:
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), pb.ELBO())
        for _ in range(2):
            for x, y in data.train.batches(64):
                svi.step(x, y)
    posterior = pb.summarize(model, guide, draws=20)
    assert set(posterior.channels) == set(groups.names)
    for group in groups:
        channel = posterior.channels[group.name]
        # A point estimate has no spread: its statistic is the magnitude, never an SNR of 1e12.
        if family is AutoDelta:
            assert float(channel.snr.max()) < 1e3
        else:
            draws = posterior.draws[f"{group.name}.noise"]
            assert draws.shape == (20, group.channels)
            # The summary describes what is drawn.
            z = (draws.mean(0) - channel.loc) / (channel.scale / 20**0.5)
            assert float(z.abs().max()) < 5
    plan = pb.plan(posterior, target_macs=0.6, groups=groups)
    cut_is_exact(model, guide, groups, plan, data.example)


def test_moments_of_a_correlated_guide(data: Data, net: nn.Module) -> None:
    """The law of total variance over runs agrees with the covariance that the guide holds."""
    groups = pb.channel_groups(net, data.example)
    model = pb.BayesianModel(net, SpikeNoise(1.0, groups="conv1"), data_size=100, groups=groups)
    guide = AutoLowRankMultivariateNormal(model, rank=3, init_scale=0.3)
    x, y = next(iter(data.train.batches(8)))
    model.initialise((x, y), guide)
    with torch.no_grad():
        guide.loc.copy_(torch.linspace(-1, 1, 16))
    site = pb.summarize(model, guide, draws=0).sites["conv1.noise"]
    covariance = guide.get_posterior().covariance_matrix.detach()
    assert torch.allclose(site.loc, guide.loc.detach(), atol=4 * float(covariance.diagonal().max().sqrt()) / 16)
    assert torch.allclose(site.scale, covariance.diagonal().sqrt(), rtol=0.25)
