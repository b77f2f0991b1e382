from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pyrobnn import nets
from pyrobnn.channels import ChannelTable, GateMap, PruningPlan, channel_groups, mask
from pyrobnn.errors import NetError, PlanError


class Net(nn.Module):
    """Convolution, normalisation, ReLU, twice, with a place to multiply the activation by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        if gate is not None:
            x = x * gate.view(1, -1, 1, 1)
        x = F.relu(self.bn2(self.conv2(x)))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


@pytest.fixture
def net() -> Net:
    net = Net()
    for norm in (net.bn1, net.bn2):
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    return net


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("train", [False, True])
def test_a_gate_multiplies_the_activation_in_both_modes(net: Net, images: Tensor, train: bool) -> None:
    gates = GateMap(channel_groups(net, images))
    gate = torch.rand(8) + 0.25
    gated = gates.apply(tensors_of(net), {"conv1": gate})
    by_hand, plain = copy.deepcopy(net).train(train), copy.deepcopy(net).train(train)
    expected, dense = by_hand(images, gate), plain(images)
    net.train(train)
    got = functional_call(net, gated, (images,))
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, dense, atol=1e-2)


@pytest.mark.parametrize("train", [False, True])
def test_half_a_gate_is_not_undone_by_batch_norm(net: Net, images: Tensor, train: bool) -> None:
    """Half a gate on the rows of conv1 would vanish in training mode; here it halves the activation in both."""
    table = channel_groups(net, images)
    gate = torch.full((8,), 0.5)
    gated = copy.deepcopy(net)
    GateMap(table).fold(gated, {"conv1": gate})
    assert torch.allclose(gated.train(train)(images), copy.deepcopy(net).train(train)(images, gate), atol=1e-5)


def test_gradients_reach_tensors_and_gates(net: Net, images: Tensor) -> None:
    gates = GateMap(channel_groups(net, images))
    values = {"conv1": torch.rand(8, requires_grad=True), "conv2": torch.rand(6, requires_grad=True)}
    functional_call(net, gates.apply(tensors_of(net), values), (images,)).square().sum().backward()
    assert all(value.grad is not None and bool(value.grad.ne(0).all()) for value in values.values())
    assert all(parameter.grad is not None for parameter in net.parameters())
    eps, direction = 1e-3, torch.randn(8)
    with torch.no_grad():
        net.eval()

        def loss(shift: float) -> Tensor:
            moved = {"conv1": values["conv1"] + shift * direction, "conv2": values["conv2"]}
            return functional_call(net, gates.apply(tensors_of(net), moved), (images,)).square().sum()

        numeric = (loss(eps) - loss(-eps)) / (2 * eps)
    value = values["conv1"].detach().clone().requires_grad_()
    out = functional_call(net, gates.apply(tensors_of(net), {"conv1": value, "conv2": values["conv2"]}), (images,))
    (analytic,) = torch.autograd.grad(out.square().sum(), value)
    assert float(analytic @ direction) == pytest.approx(float(numeric), rel=2e-2)


def test_zero_gates_equal_a_mask_on_a_resnet() -> None:
    net, x = nets.resnet20().eval(), torch.randn(2, 3, 32, 32)
    table: ChannelTable = channel_groups(net, x, try_cut=False)
    gates = {group.name: (torch.rand(group.channels) > 0.4).float() for group in table}
    plan = PruningPlan({n: g.nonzero().squeeze(1).tolist() for n, g in gates.items()}, table.widths())
    gated = GateMap(table).apply(tensors_of(net), gates)
    with torch.no_grad():
        assert torch.allclose(functional_call(net, gated, (x,)), mask(net, plan, x, table)(x), atol=1e-5)


def test_errors_name_what_is_wrong(net: Net, images: Tensor) -> None:
    table = channel_groups(net, images)
    gates = GateMap(table)
    with pytest.raises(NetError, match=r"'conv2.weight'"):
        gates.apply({}, {"conv1": torch.ones(8)})
    with pytest.raises(PlanError, match="expected 8 values"):
        gates.apply(tensors_of(net), {"conv1": torch.ones(7)})
    with pytest.raises(PlanError, match=r"near names: conv1"):
        gates.apply(tensors_of(net), {"conv11": torch.ones(8)})
    assert gates.apply({}, {}) == {}
