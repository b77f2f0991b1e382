from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyrobnn import nets
from pyrobnn.channels import channel_groups
from pyrobnn.report.cost import count


@pytest.mark.parametrize(
    ("name", "shape", "params", "macs"),
    [
        ("lenet5", (1, 28, 28), 431_080, 2_293_000),
        ("lenet300", (1, 28, 28), 266_610, 266_200),
        ("resnet20", (3, 32, 32), 269_722, 40_551_040),
        ("vgg16", (3, 32, 32), 14_991_946, 313_463_808),
    ],
)
def test_known_networks(name: str, shape: tuple[int, ...], params: int, macs: int) -> None:
    net, x = nets.build(name, in_channels=shape[0], image_size=shape[1]), torch.randn(3, *shape)
    cost = count(net, x)
    assert (cost.params, cost.macs) == (params, macs)
    table = channel_groups(net, x, try_cut=False)
    assert (table.cost().params, table.cost().macs) == (params, macs)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet5", (1, 28, 28)),
        ("resnet20", (3, 32, 32)),
        ("mobilenet_v3_small", (3, 64, 64)),
        ("densenet121", (3, 64, 64)),
    ],
)
def test_torchs_flop_counter_agrees(name: str, shape: tuple[int, ...]) -> None:
    net, x = nets.build(name, in_channels=shape[0], image_size=shape[1]).eval(), torch.randn(1, *shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    assert count(net, x).macs == counter.get_total_flops() / 2  # a multiplication and an addition


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 8, 8), 6 * 2 * 9 * 16),
        (nn.Conv1d(4, 6, 3), (4, 10), 6 * 4 * 3 * 8),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), 2 * 8 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 4 * 6 * 4 * 25),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 5, 5), 4 * 3 * 4 * 25),
        (nn.Linear(5, 3), (7, 5), 3 * 5 * 7),
    ],
)
def test_macs_by_definition(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    x = torch.randn(2, *shape)
    assert count(layer, x).macs == macs
    assert channel_groups(layer, x).cost().macs == macs


def test_the_module_is_not_touched_and_zeros_are_seen() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)).train()
    with torch.no_grad():
        net[0].weight[0] = 0.0
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cost = count(net, torch.randn(2, 1, 5, 5))
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert cost.params == 22 and cost.nonzero_params == 9 + 2  # one filter and the zero shifts are gone
    assert cost.bytes == 22 * 4 + 4 * 4 + 8  # parameters, two float statistics of two channels, one int64 counter


def test_a_shared_tensor_counts_once_in_size_and_every_time_in_work() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    cost = count(Twice(), torch.randn(1, 4))
    assert (cost.params, cost.macs) == (16, 32)
