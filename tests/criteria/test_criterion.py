"""Criteria as objects: each finds planted idle channels, says what it lacks, and one of a user's own works everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.criterion import Criterion
from pyrobnn.criteria.registry import CRITERIA
from pyrobnn.errors import ConfigError
from pyrobnn.guides.noise import NormalNoise, TruncatedLogNormalNoise
from pyrobnn.guides.spike_slab import SpikeSlabGuide
from pyrobnn.guides.turbo import TurboGuide
from pyrobnn.methods.spike_slab import SS_IG
from pyrobnn.priors.base import Prior
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise, TwoSpikeNoise
from pyrobnn.priors.spike_slab import EdgeSpikeSlab, SpikeSlab
from pyrobnn.priors.turbo import Turbo
from pyrobnn.summary.types import Posterior

DEAD = (1, 6)
PLAIN = [name for name in ("l1", "bn-scale", "fpgm", "taylor", "group-fisher", "laplace") if name in CRITERIA]


class Planted(nn.Module):
    """Two of eight channels are zero, and nobody reads them; the others matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mid, self.norm_b, self.head = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 3)
        with torch.no_grad():
            self.head.weight *= 5
            for k in DEAD:
                for row in (self.conv.weight[k], self.conv.bias[k], self.norm.weight[k], self.norm.bias[k]):
                    row.zero_()
                self.mid.weight[:, k] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.norm_b(self.mid(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def planted() -> tuple[nn.Module, pb.Data, pb.ChannelTable]:
    torch.manual_seed(0)
    net = Planted()
    data = pb.load_data(torch.utils.data.TensorDataset(torch.randn(300, 1, 8, 8), torch.arange(300) % 3))
    return net, data, pb.channel_groups(net, data.example)


@pytest.mark.parametrize("target", [0.97, 0.8, 0.5])
@pytest.mark.parametrize("name", PLAIN)
def test_dead_channels_go_under_every_target(name, target, planted):
    """Also where the budget asks for less than that: it then stays unspent."""
    net, data, table = planted
    if (
        name == "fpgm"
    ):  # distances to other filters: two equal dead ones are far from the rest, and not known to be dead
        pytest.skip("fpgm does not look at how large a filter is")
    found = pb.plan(None, name, net=net, data=data, groups=table, target_macs=target)
    assert not set(found.keep["conv"]) & set(DEAD)
    after = table.after(found).cost(None)
    assert after.macs <= target * table.cost(None).macs


NOISE: dict[str, tuple[Prior, type]] = {
    "ard": (ARDNoise(), NormalNoise),
    "sbp": (LogUniformNoise(), TruncatedLogNormalNoise),
    "two-spike": (TwoSpikeNoise(), NormalNoise),
    "ss-ig": (SpikeSlab("theory", relative=True), SpikeSlabGuide),
    "ss-edge": (EdgeSpikeSlab(0.5, relative=True), SpikeSlabGuide),
    "turbo": (Turbo(), TurboGuide),
}


@pytest.mark.parametrize("name", ["ard", "ss-ig"])
def test_dead_channels_of_a_posterior_go_under_every_target(name, planted):
    net, data, table = planted
    prior, guide_of = NOISE[name]
    model = pb.BayesianModel(net, prior, data_size=300, groups=table)
    guide = guide_of(model)
    information = {"conv": torch.full((8,), 300.0), "mid": torch.full((6,), 300.0)}
    information["conv"][list(DEAD)] = 0.0
    guide.start_at(information, {})
    posterior = pb.summarize(model, guide, draws=0)
    if name == "ss-ig":  # whose method looks at the network under the gates
        posterior = SS_IG.score(ScoringContext(posterior, model=model, guide=guide, data=data, table=table))
    for target in (0.97, 0.8, 0.5):
        assert not set(pb.plan(posterior, groups=table, target_macs=target).keep["conv"]) & set(DEAD)


@pytest.mark.parametrize("name", ["turbo", "ss-edge"])
def test_shares_cost_every_producer_of_a_residual_stream(name):
    """A channel that two layers write costs twice the share, as for the scores of plain networks."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.head = (
                nn.Conv2d(1, 4, 3, padding=1),
                *(nn.Conv2d(4, 4, 1) for _ in range(2)),
                nn.Linear(4, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.head((x + self.c(torch.relu(self.b(x)))).mean((2, 3)))

    net = Stream()
    with torch.no_grad():
        for layer in (net.a, net.b, net.c):
            layer.weight.copy_(torch.full_like(layer.weight, 0.3))
    table = pb.channel_groups(net, torch.randn(2, 1, 6, 6))
    prior, guide_of = NOISE[name]
    model = pb.BayesianModel(net, prior, data_size=300, groups=table)
    channels = pb.summarize(model, guide_of(model), draws=0).channels
    assert {summary.unit for summary in channels.values()} == {"share"}
    assert float(channels["a"].nats[:3].sum()) == pytest.approx(2 * float(channels["b"].nats[:3].sum()), rel=0.05)


def test_evidence_of_all_posteriors_in_nats(planted):
    """No refusal for ARD, log-uniform or two-spike noise; what is idle has none for it, what matters has."""
    net, _, table = planted
    for name in ("ard", "sbp", "two-spike", "ss-ig"):
        prior, guide_of = NOISE[name]
        model = pb.BayesianModel(net, prior, data_size=300, groups=table)
        gates = name == "ss-ig"  # which weigh the KL of the slabs behind them as well
        guide = guide_of(model, init_rho=None) if gates else guide_of(model)
        worth = 3000.0 if gates else 300.0
        information = {"conv": torch.full((8,), worth), "mid": torch.full((6,), worth)}
        information["conv"][list(DEAD)] = 0.0
        guide.start_at(information, {})
        keep = pb.plan(pb.summarize(model, guide, draws=0), "evidence").keep
        if name != "two-spike":  # whose width tells curvature below 1 % of its spike's from nothing only
            assert keep["conv"] == [k for k in range(8) if k not in DEAD], name
        assert keep["mid"] == list(range(6)), name


def test_bmrs_criteria_read_log_uniform_noise_and_refuse_the_rest(planted):
    net, _, table = planted
    model = pb.BayesianModel(net, LogUniformNoise(), data_size=300, groups=table)
    guide = TruncatedLogNormalNoise(model)
    guide.start_at({"conv": torch.tensor([0.0, *[500.0] * 7]), "mid": torch.full((6,), 500.0)}, {})
    posterior = pb.summarize(model, guide, draws=0)
    for name in ("bmrs-n", "bmrs-u"):
        scores = CRITERIA[name](ScoringContext(posterior, table=table, guide=guide))
        assert int(scores.channels["conv"].evidence.argmin()) == 0
        with pytest.raises(ConfigError, match="needs the guide"):
            pb.plan(posterior, name)
        with pytest.raises(ConfigError, match="log-uniform"):
            other = pb.BayesianModel(net, ARDNoise(), data_size=300, groups=table)
            CRITERIA[name](ScoringContext(posterior, guide=NormalNoise(other)))


def test_a_criterion_of_ones_own_is_one_object(planted):
    net, _, table = planted

    def score(scoring: ScoringContext) -> Posterior:
        weights = dict(scoring.need("net", "first weight").named_parameters())
        channels = {}
        for name, summary in scoring.posterior.channels.items():
            first = weights[f"{name}.weight"].detach().flatten(1)[:, 0].abs()
            channels[name] = replace(summary, snr=first, nats=first, unit="nats")
        return replace(scoring.posterior, channels=channels)

    mine = Criterion("first weight", "|first weight|", "nats", score, threshold=0.05)
    model = pb.BayesianModel(net, ARDNoise(), data_size=300, groups=table)
    blank = pb.summarize(model, NormalNoise(model), draws=0)
    found = pb.plan(blank, mine, net=net)
    first = net.conv.weight.detach().flatten(1)[:, 0].abs()
    assert found.keep["conv"] == [k for k in range(8) if float(first[k]) >= 0.05]
    assert found.reason["conv"] == "first weight >= 0.05"
    assert pb.plan(blank, mine, net=net, groups=table, target_macs=0.5).keep["conv"]


def test_what_is_missing_is_named(planted):
    net, data, table = planted
    with pytest.raises(ConfigError, match="laplace needs the data"):
        pb.plan(None, "laplace", net=net, groups=table)
    with pytest.raises(ConfigError, match="taylor needs the net"):
        pb.plan(None, "taylor", data=data, groups=table)
    with pytest.raises(ConfigError, match="unit"):
        Criterion("x", "x", "bits", lambda scoring: scoring.posterior)
    with pytest.raises(ConfigError, match="reads one of"):
        Criterion("x", "x", "nats", lambda scoring: scoring.posterior, reads="loc")
