from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pyrobnn import nets
from pyrobnn.channels import PruningPlan, channel_groups, compact, mask, resize_to
from pyrobnn.errors import NetError, PlanError


def randomised(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return net.eval()


def test_tensors_and_attributes_of_lenet() -> None:
    net, x = nets.lenet5(), torch.randn(3, 1, 28, 28)
    plan = PruningPlan({"conv1": [3, 5], "conv2": [0, 7, 9], "fc1": list(range(4))},
                       {"conv1": 20, "conv2": 50, "fc1": 500})  # fmt: skip
    small = compact(net, plan, x)
    assert torch.equal(small.get_parameter("conv2.weight"), net.get_parameter("conv2.weight")[[0, 7, 9]][:, [3, 5]])
    assert [tuple(p.shape) for p in small.parameters()] == [
        (2, 1, 5, 5), (2,), (3, 2, 5, 5), (3,), (4, 48), (4,), (10, 4), (10,)
    ]  # fmt: skip
    conv, linear = small.get_submodule("conv2"), small.get_submodule("fc1")
    assert (conv.in_channels, conv.out_channels, linear.in_features, linear.out_features) == (2, 3, 48, 4)
    with torch.no_grad():
        assert torch.allclose(small(x), mask(net, plan, x)(x), atol=1e-5)


def test_the_net_is_untouched_and_modes_and_flags_are_kept() -> None:
    net, x = nets.resnet20(), torch.randn(2, 3, 32, 32)
    net.train()
    net.get_parameter("conv1.weight").requires_grad_(False)
    net(x).sum().backward()
    before = copy.deepcopy(net)
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    table = channel_groups(net, x)
    small = compact(net, PruningPlan({"conv1": [0, 1, 2]}, {"conv1": 16}), x, table)
    for (name, a), (_, b) in zip(net.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad == b.requires_grad, name
        old = grads[name]
        assert a.grad is None if old is None else torch.equal(a.grad, old)  # type: ignore[arg-type]
    assert small.training and not small.get_parameter("conv1.weight").requires_grad
    assert small.get_parameter("layer1.0.conv1.weight").requires_grad


def test_both_sides_of_a_channel_map_are_cut() -> None:
    net, x = randomised(nets.resnet20()), torch.randn(2, 3, 32, 32)
    table = channel_groups(net, x)
    generator = torch.Generator().manual_seed(0)
    keep = {n: torch.randperm(w, generator=generator)[: 2 + w // 3].tolist() for n, w in table.widths().items()}
    plan = PruningPlan(keep, table.widths())
    small = compact(net, plan, x, table)
    with torch.no_grad():
        assert torch.allclose(small(x), mask(net, plan, x, table)(x), atol=1e-5)
    first = next(module for module in small.modules() if isinstance(module, nets.ChannelMap))
    old = next(module for module in net.modules() if isinstance(module, nets.ChannelMap))
    outs, ins = sorted(keep["layer2.0.conv2"]), sorted(keep["conv1"])
    for slot, out in enumerate(outs):
        source = int(old.index[out])
        reads = bool(old.weight[out]) and source in ins
        assert (bool(first.weight[slot]), int(first.index[slot])) == (
            reads,
            ins.index(source) if reads else 0,
        )


def test_a_shared_parameter_stays_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(self.stem(x)).relu()).relu())

    net, x = Tied(), torch.randn(2, 3, 4, 4)
    table = channel_groups(net, x)
    assert table.widths() == {"stem": 4}  # rows and columns of one tensor are the same channels
    plan = PruningPlan({"stem": [1, 3]}, {"stem": 4})
    small = compact(net, plan, x, table)
    assert small.a.weight is small.b.weight and small.b.in_channels == 2
    assert torch.allclose(small(x), mask(net, plan, x, table)(x), atol=1e-6)
    assert sum(p.numel() for p in small.parameters()) == table.after(plan).cost().params


@pytest.mark.parametrize("name", ["resnet20", "resnext", "mobilenet", "regnet"])
def test_resize_to_rebuilds_from_the_factory_and_the_tensors(name: str) -> None:
    makers = {
        "resnet20": nets.resnet20,
        "resnext": lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=4, num_classes=3
        ),
        "mobilenet": lambda: torchvision.models.mobilenet_v2(weights=None, width_mult=0.25, num_classes=3),
        "regnet": lambda: torchvision.models.regnet_x_400mf(weights=None, num_classes=3),
    }
    net, x = randomised(makers[name]()), torch.randn(2, 3, 32, 32)
    table = channel_groups(net, x, try_cut=False)
    for cut in (2, 3):  # two rounds, so that what a grouped convolution remembers is needed
        plan = PruningPlan({n: list(range(0, w, cut)) for n, w in table.widths().items()}, table.widths())
        net_small = compact(net, plan, x, table)
        again = resize_to(makers[name](), net_small.state_dict()).eval()
        with torch.no_grad():
            assert torch.equal(again(x), net_small(x))
        for a, b in zip(again.modules(), net_small.modules(), strict=True):
            if isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d):
                assert (a.in_channels, a.out_channels, a.groups) == (b.in_channels, b.out_channels, b.groups)
        read = channel_groups(net_small, x, try_cut=False)
        net, table = net_small, table.after(plan)
        left = {n: w for n, w in table.widths().items() if w > 1}
        assert {n: w for n, w in read.widths().items() if n in left} == {n: left[n] for n in read.widths()}


def test_memory_layout_is_kept() -> None:
    net, x = nets.resnet20().to(memory_format=torch.channels_last), torch.randn(2, 3, 32, 32)
    small = compact(net, PruningPlan({"conv1": [0, 1, 2]}, {"conv1": 16}), x)
    for weight in (small.get_parameter("conv1.weight"), small.get_parameter("layer1.0.conv1.weight")):
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_errors() -> None:
    net, x = nets.lenet5(), torch.randn(2, 1, 28, 28)
    with pytest.raises(PlanError, match="made for 6 units"):
        compact(net, PruningPlan({"conv1": [0]}, {"conv1": 6}), x)
    table = channel_groups(net, x)
    plan = PruningPlan({"conv1": [0]}, {"conv1": 20})
    small = compact(net, plan, x, table)
    with pytest.raises(NetError, match=r"expected 'conv\d.weight' of shape \(\d+, \d+, 5, 5\)"):
        compact(small, plan, x, table)
    state = dict(small.state_dict())
    with pytest.raises(NetError, match="'conv1.bias' is missing"):
        resize_to(nets.lenet5(), {k: v for k, v in state.items() if k != "conv1.bias"})
    with pytest.raises(NetError, match="'extra' is unexpected"):
        resize_to(nets.lenet5(), {**state, "extra": torch.ones(1)})
    with pytest.raises(NetError, match="no larger than"):
        resize_to(nets.lenet5(), {**state, "conv1.bias": torch.ones(21)})


def test_a_plan_that_empties_a_layer_is_refused() -> None:
    class Part(nn.Module):
        """`side` makes four of the eight channels of a sum."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.side, self.mid = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) + torch.cat([self.side(x), self.mid(x)], 1))

    net, x = Part(), torch.randn(2, 3, 4, 4)
    table = channel_groups(net, x)
    assert table.widths() == {"stem": 8}
    with pytest.raises(PlanError, match="leaves nothing of axis 0 of 'side"):
        compact(net, PruningPlan({"stem": [4, 5]}, {"stem": 8}), x, table)
    plan = PruningPlan({"stem": [0, 1, 5]}, {"stem": 8})
    assert torch.allclose(compact(net, plan, x, table)(x), mask(net, plan, x, table)(x), atol=1e-6)
