from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrobnn import nets
from pyrobnn.channels import PruningPlan, channel_groups, mask
from pyrobnn.errors import NetError, PlanError


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 1, 28, 28)


def test_a_removed_channel_has_no_effect_whatever_it_holds(images: torch.Tensor) -> None:
    net = nets.lenet5().eval()
    plan = PruningPlan({"conv1": list(range(1, 20))}, {"conv1": 20})
    masked = mask(net, plan, images)
    before = masked(images)
    with torch.no_grad():
        masked.get_parameter("conv1.weight")[0] = 1e3
        masked.get_parameter("conv1.bias")[0] = 1e3
    assert torch.equal(masked(images), before)
    assert not torch.allclose(net(images), before)


def test_only_consumers_are_zeroed_and_shapes_stay(images: torch.Tensor) -> None:
    net = nets.lenet5()
    masked = mask(net, PruningPlan({"conv2": [0, 49]}, {"conv2": 50}), images)
    assert torch.equal(masked.get_parameter("conv2.weight"), net.get_parameter("conv2.weight"))
    columns = masked.get_parameter("fc1.weight").view(500, 50, 16)
    assert bool((columns[:, 1:49] == 0).all())
    assert torch.equal(columns[:, [0, 49]], net.get_parameter("fc1.weight").view(500, 50, 16)[:, [0, 49]])
    assert masked.get_parameter("fc1.weight") is not net.get_parameter("fc1.weight")


def test_channel_maps_are_masked() -> None:
    net, x = nets.resnet20(), torch.randn(2, 3, 32, 32)
    table = channel_groups(net, x, try_cut=False)
    masked = mask(net, PruningPlan({"conv1": list(range(1, 16))}, {"conv1": 16}), None, table)
    maps = [(a, b) for a, b in zip(net.modules(), masked.modules(), strict=True) if isinstance(a, nets.ChannelMap)]
    first_before, first_after = maps[0]
    assert int(first_before.weight.count_nonzero()) == 16 and int(first_after.weight.count_nonzero()) == 15


def test_errors(images: torch.Tensor) -> None:
    net = nets.lenet5()
    table = channel_groups(net, images, try_cut=False)
    with pytest.raises(PlanError, match="near names: conv2, conv1"):
        mask(net, PruningPlan({"conv9": [0]}, {"conv9": 2}), images, table)
    with pytest.raises(PlanError, match="made for 6 units of 'conv1', this net has 20"):
        mask(net, PruningPlan({"conv1": [0]}, {"conv1": 6}), images, table)
    with pytest.raises(PlanError, match="cannot be cut: reaches the network's output"):
        mask(net, PruningPlan({"fc2": [0]}, {"fc2": 10}), images, table)
    with pytest.raises(PlanError, match="expected an example batch or groups"):
        mask(net, PruningPlan({"conv1": [0]}, {"conv1": 20}), None)
    with pytest.raises(NetError, match="belong to another net"):
        mask(nn.Linear(2, 2), PruningPlan({"conv1": [0]}, {"conv1": 20}), None, table)
