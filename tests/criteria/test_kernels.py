"""Redundant kernels: what they are ranked by, and where the gap is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels.planner import Limits
from pyrobnn.criteria.kernels import rank_kernels, redundancy_plan, redundant_by_gap
from pyrobnn.errors import ConfigError
from pyrobnn.guides.kernel import KernelMeanField
from pyrobnn.priors.tensor_normal import TensorNormal


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.fc = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).flatten(1))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 5, 3, padding=1)
        self.fc = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x))))).flatten(1))


def ranked(net: nn.Module, statistic: str = "norm") -> pb.Posterior:
    groups = pb.channel_groups(net, torch.randn(2, 1, 4, 4))
    model = pb.BayesianModel(net, TensorNormal(1.0), data_size=10, groups=groups)
    guide = KernelMeanField(model, init_scale=0.5)
    with torch.no_grad():
        guide.log_scale["conv1|weight"].copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log().view(4, 1, 1, 1))
    return rank_kernels(pb.summarize(model, guide, draws=0), groups, statistic)


def test_frobenius_norm_of_the_means() -> None:
    net = Plain()
    channels = ranked(net).channels
    torch.testing.assert_close(channels["conv1"].snr, net.conv1.weight.detach().flatten(1).norm(dim=1))
    torch.testing.assert_close(channels["conv2"].snr, net.conv2.weight.detach().flatten(1).norm(dim=1))
    for channel in channels.values():
        assert channel.statistic == "magnitude"
        squared = channel.snr.square()  # one producer each
        torch.testing.assert_close(channel.nats, squared / squared.sum())


def test_snr_of_a_kernel() -> None:
    net = Plain()
    snr = ranked(net, "snr").channels["conv1"].snr
    wanted = net.conv1.weight.detach().flatten(1).norm(dim=1) / (torch.tensor([0.1, 0.2, 0.3, 0.4]) * 9**0.5)
    torch.testing.assert_close(snr, wanted)


def test_behind_a_normalisation_the_unit_of_a_kernel_does_not_count() -> None:
    torch.manual_seed(1)
    net = Normed()
    before = ranked(net).channels["conv1"].snr
    with torch.no_grad():
        net.conv1.weight *= 7.0
        net.conv2.weight /= 7.0
    torch.testing.assert_close(ranked(net).channels["conv1"].snr, before)
    with torch.no_grad():
        net.conv2.weight[:, 2] = 0.0  # nobody reads it
    assert float(ranked(net).channels["conv1"].snr[2]) == 0.0


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e6])
def test_the_gap_does_not_depend_on_the_unit(scale: float) -> None:
    norms = scale * torch.tensor([0.9, 0.004, 0.7, 0.005, 0.8, 0.0041])
    assert redundant_by_gap(norms).tolist() == [False, True, False, True, False, True]


def test_no_gap_no_redundancy() -> None:
    assert not redundant_by_gap(torch.linspace(0.4, 1.0, 20)).any()
    assert not redundant_by_gap(torch.tensor([2.0])).any()
    assert not redundant_by_gap(torch.zeros(3)).any()
    assert redundant_by_gap(torch.tensor([0.0, 1.0])).tolist() == [True, False]
    assert redundant_by_gap(torch.tensor([0.3, 1.0]), ratio=3.4).tolist() == [False, False]
    assert redundant_by_gap(torch.tensor([0.3, 1.0]), ratio=3.3).tolist() == [True, False]
    fading = torch.logspace(0, -3, 40)  # no gap anywhere, and yet some are near zero
    assert redundant_by_gap(fading).tolist() == [bool(v < 0.01) for v in fading]
    with pytest.raises(ConfigError, match="above 1, got 1"):
        redundant_by_gap(torch.ones(2), ratio=1.0)


def test_plan_keeps_what_is_not_redundant() -> None:
    net = Plain()
    with torch.no_grad():
        net.conv1.weight[[0, 3]] *= 1e-3
    posterior = ranked(net)
    plan = redundancy_plan(posterior, Limits())
    assert plan.keep["conv1"] == [1, 2] and plan.keep["conv2"] == [0, 1, 2, 3, 4]
    assert redundancy_plan(posterior, Limits(min_channels=3)).keep["conv1"] in ([0, 1, 2], [1, 2, 3])
    noisy = ranked(Plain(), "snr")  # scales 0.1 to 0.4 on weights of about 0.2
    wanted = [k for k, value in enumerate(noisy.channels["conv1"].snr) if value >= 1]
    assert 0 < len(wanted) < 4 and redundancy_plan(noisy, Limits()).keep["conv1"] == wanted


def test_bad_input() -> None:
    net = Plain()
    with pytest.raises(ConfigError, match="one of norm, snr, got 'l2'"):
        ranked(net, "l2")
    groups = pb.channel_groups(net, torch.randn(2, 1, 4, 4))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0, select="fc"), data_size=10, groups=groups)
    posterior = pb.summarize(model, pb.guides.MeanField(model), draws=0)
    with pytest.raises(ConfigError, match="'conv1' has channels without a random kernel"):
        rank_kernels(posterior, groups)


def test_what_ranked_before_is_gone() -> None:
    """Scores of another criterion would be spent in place of the shares."""
    net = Plain()
    groups = pb.channel_groups(net, torch.randn(2, 1, 4, 4))
    before = ranked(net)
    for name, channel in before.channels.items():
        before.channels[name] = replace(channel, ranking=channel.snr.flip(0), evidence=channel.snr)
    for channel in rank_kernels(before, groups).channels.values():
        assert channel.evidence is None and torch.equal(channel.cost, channel.nats.clamp_min(1e-30))
