"""The curvature along a channel, averaged over a posterior of weights: against its closed form in a linear network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.criteria import curvature as curvature_module
from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.curvature import CURVATURE, DRAWS, expected_fisher
from pyrobnn.criteria.joint import joint_losses
from pyrobnn.errors import ConfigError
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.guides.spike_slab import SpikeSlabGuide
from pyrobnn.inference.curvature import GateFisher
from pyrobnn.likelihoods import Gaussian as GaussianLikelihood
from pyrobnn.priors.spike_slab import SpikeSlab
from pyrobnn.summary.evidence import gate_evidence

HIDDEN, NOISE, WIDTH = 5, 0.5, 0.2


def linear(images: int) -> tuple[nn.Sequential, pb.Data, pb.ChannelTable, Tensor]:
    """f(x) = Σ_c v_c w_c x, data of its own outputs, its channels, and the inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, HIDDEN, 1, bias=False), nn.Conv2d(HIDDEN, 1, 1, bias=False), nn.Flatten())
    inputs = torch.rand(images, 1, 1, 1)
    data = pb.load_data(
        (inputs, net(inputs).detach()), task="regression", mean=[0.0], std=[1.0], valid_fraction=0.0, test_fraction=0.2
    )
    return net, data, pb.channel_groups(net, data.example), torch.cat([x for x, _ in data.train.batches(100)]).double()


def random_weights() -> tuple[ScoringContext, Tensor]:
    """Independent Normals on all v and w, and their context; the inputs."""
    net, data, table, inputs = linear(4000)
    model = pb.BayesianModel(
        net,
        pb.priors.Gaussian(1.0),
        data_size=len(data.train),
        groups=table,
        likelihood=GaussianLikelihood(NOISE),
    )
    guide = MeanField(model)
    for name, (mean, _) in guide.moments().items():
        guide.set_scale(name, torch.linspace(0.5, 1.5, HIDDEN).reshape(mean.shape), torch.full_like(mean, WIDTH))
    posterior = pb.summarize(model, guide, draws=0)
    context = ScoringContext(posterior, table=table, net=net, model=model, guide=guide, data=data)
    return context, inputs


def test_it_is_the_expected_curvature_in_closed_form() -> None:
    """½ N E[v²] E[w²] mean(x²) / s²: the widths of the posterior count, not only its means."""
    context, inputs = random_weights()
    means = torch.linspace(0.5, 1.5, HIDDEN).double()
    squares = means.square() + WIDTH**2
    exact = 0.5 * len(inputs) * squares.square() * float(inputs.square().mean()) / NOISE**2
    found = expected_fisher(context, draws=320, images=10)
    (nats,) = (0.5 * value for value in found.diagonal.values())
    torch.testing.assert_close(nats.double(), exact, rtol=0.15, atol=0)
    at_means = exact * (means.square() / squares).square()
    assert float(nats[0]) > 1.2 * float(at_means[0])


def test_a_gate_counts_as_often_as_it_is_open() -> None:
    """½ γ F: the curvature at an open gate, none at a closed one; whatever KL the gate was fitted with."""
    net, data, table, inputs = linear(20_000)
    model = pb.BayesianModel(
        net, SpikeSlab("theory"), data_size=len(data.train), groups=table, likelihood=GaussianLikelihood(NOISE)
    )
    guide = SpikeSlabGuide(model, init_rho=-12.0)  # slabs as narrow as points
    odds = torch.tensor([1.6, 2.0, 3.0, 4.0, 12.0])
    with torch.no_grad():
        guide.theta["0|gate"].copy_(odds)
    posterior = pb.summarize(model, guide, draws=0)
    context = ScoringContext(posterior, table=table, net=net, model=model, guide=guide, data=data)
    found = 0.5 * expected_fisher(context, draws=800, images=16).diagonal["0"]
    v, w = (layer.weight.detach().flatten().double() for layer in (net[0], net[1]))  # type: ignore[operator]
    exact = 0.5 * len(inputs) * odds.double().sigmoid() * (v * w).square() * float(inputs.square().mean()) / NOISE**2
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0)


def test_the_criterion_spends_nats_and_has_evidence() -> None:
    context, _ = random_weights()
    (summary,) = CURVATURE(context).channels.values()
    assert summary.unit == "nats" and torch.equal(summary.evidence, gate_evidence(summary.nats))
    assert torch.equal(summary.snr, next(iter(context.posterior.channels.values())).snr)
    again = next(iter(CURVATURE(context).channels.values()))
    assert torch.equal(again.nats, summary.nats)  # seeded, whatever the global state is


def test_it_says_what_it_lacks() -> None:
    context, _ = random_weights()
    with pytest.raises(ConfigError, match="curvature needs the model"):
        CURVATURE(ScoringContext(context.posterior, table=context.table))


@pytest.mark.parametrize("images", [1100, 40, 7])
def test_few_images_are_shared_by_all_draws(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws would leave channels unseen whose gates are off in them."""
    context, _ = random_weights()
    data = context.need("data")
    few = replace(context, data=replace(data, train=data.train.take(images)))
    looked: list[int] = []

    def count(net: object, table: object, batches: Iterable[tuple[Tensor, Tensor]], **options: object) -> GateFisher:
        looked.extend(len(x) for x, _ in batches)
        return GateFisher({}, None, None, 1, 1)

    monkeypatch.setattr(curvature_module, "gate_fisher", count)
    expected_fisher(few)
    assert looked == [max(1, images // DRAWS)] * DRAWS


def test_a_channel_that_was_off_in_every_draw_goes_first_and_not_for_free() -> None:
    net, data, table, _ = linear(400)
    model = pb.BayesianModel(
        net, SpikeSlab("theory"), data_size=len(data.train), groups=table, likelihood=GaussianLikelihood(NOISE)
    )
    guide = SpikeSlabGuide(model, init_rho=-12.0)
    with torch.no_grad():
        guide.theta["0|gate"].copy_(torch.tensor([-20.0, -5.5, 8.0, 8.0, 8.0]))  # closed; once in 245 draws; open
    context = ScoringContext(
        pb.summarize(model, guide, draws=0), table=table, net=net, model=model, guide=guide, data=data
    )
    assert expected_fisher(context).diagonal["0"][:2].tolist() == [0.0, 0.0]
    found = CURVATURE(context).channels["0"]
    assert found.costs_nothing.tolist() == [True, False, False, False, False]
    assert int(found.cost[1:].argmin()) == 0


def test_without_classes_the_products_of_the_likelihood_itself_rank() -> None:
    context, _ = random_weights()
    fisher = expected_fisher(context)
    assert fisher.softened is None and fisher.blocks is not None
    for name, summary in CURVATURE(context).channels.items():
        assert summary.ranking is not None
        assert torch.equal(summary.ranking, joint_losses(fisher.blocks[name]).float())
