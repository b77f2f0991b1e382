from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from pyrobnn import nets
from pyrobnn.channels import ChannelTable, PruningPlan, channel_groups, compact
from pyrobnn.errors import ConfigError, NetError, PlanError
from pyrobnn.report.cost import count


@pytest.fixture(scope="module")
def lenet() -> tuple[nn.Module, ChannelTable, torch.Tensor]:
    net, x = nets.lenet5(), torch.randn(2, 1, 28, 28)
    return net, channel_groups(net, x), x


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, ChannelTable, torch.Tensor]:
    net, x = nets.resnet20(), torch.randn(2, 3, 32, 32)
    return net, channel_groups(net, x), x


def test_lenet_by_hand(lenet: tuple[nn.Module, ChannelTable, torch.Tensor]) -> None:
    _, table, _ = lenet
    assert table.widths() == {"conv1": 20, "conv2": 50, "fc1": 500}
    roles = {(m.tensor, m.axis): m.role for m in table["conv2"].members}
    assert roles == {("conv2.weight", 0): "out", ("conv2.bias", 0): "out", ("fc1.weight", 1): "in"}
    (into,) = [m for m in table["conv2"].members if m.role == "in"]
    assert torch.equal(into.index, torch.arange(800).view(50, 16))
    # One filter of conv2: 20*25 weights, a bias, 16 columns of fc1; 8*8 and 1 positions.
    assert (table["conv2"].cost.params, table["conv2"].cost.macs) == (500 + 1 + 16 * 500, 500 * 64 + 16 * 500)
    assert [(axis, name) for axis, name, _ in table.axes("conv2.weight")] == [(1, "conv1"), (0, "conv2")]
    assert (table.cost().params, table.cost().macs) == (431_080, 2_293_000)


def test_unit_cost_is_the_difference_it_makes(resnet: tuple[nn.Module, ChannelTable, torch.Tensor]) -> None:
    _, table, _ = resnet
    whole = table.cost()
    for group in table:
        for unit in (0, group.channels - 1):
            keep = torch.ones(group.channels, dtype=torch.bool)
            keep[unit] = False
            left = table.cost({group.name: keep})
            if group.name != "layer3.0.conv2" and group.name != "layer2.0.conv2":
                assert (whole.params - left.params, whole.macs - left.macs) == (
                    group.cost.params,
                    group.cost.macs,
                )
    total = {"params": 0.0, "macs": 0.0}
    name = "layer2.0.conv2"
    for unit in range(32):
        keep = torch.ones(32, dtype=torch.bool)
        keep[unit] = False
        left = table.cost({name: keep})
        total["params"] += whole.params - left.params
        total["macs"] += whole.macs - left.macs
    assert (table[name].cost.params, table[name].cost.macs) == (total["params"] / 32, total["macs"] / 32)


def test_soft_cost_is_the_mean_over_independent_keeps(
    lenet: tuple[nn.Module, ChannelTable, torch.Tensor],
) -> None:
    _, table, _ = lenet
    chance = {name: torch.rand(width) for name, width in table.widths().items()}
    generator = torch.Generator().manual_seed(0)
    draws = [
        table.cost({name: torch.rand(p.shape, generator=generator) < p for name, p in chance.items()})
        for _ in range(400)
    ]
    soft = table.cost(chance)
    for figure in ("params", "macs"):
        values = torch.tensor([float(getattr(draw, figure)) for draw in draws])
        error = values.std() / len(draws) ** 0.5
        assert abs(float(getattr(soft, figure)) - float(values.mean())) < 4 * float(error)


def test_soft_cost_has_gradients(resnet: tuple[nn.Module, ChannelTable, torch.Tensor]) -> None:
    _, table, _ = resnet
    keep = {name: torch.rand(width, dtype=torch.float64).requires_grad_() for name, width in table.widths().items()}
    first = list(keep)[:3]

    def macs(*values: torch.Tensor) -> torch.Tensor:
        return table.cost({**keep, **dict(zip(first, values, strict=True))}).macs / 1e6  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(macs, [keep[name] for name in first])
    ones = {name: torch.ones(width) for name, width in table.widths().items()}
    assert float(table.cost(ones).macs) == table.cost().macs


def test_cost_of_random_masks_equals_the_rebuilt_net(
    resnet: tuple[nn.Module, ChannelTable, torch.Tensor],
) -> None:
    net, table, x = resnet
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        keep = {n: torch.rand(w, generator=generator) < 0.3 + 0.2 * seed for n, w in table.widths().items()}
        for mask in keep.values():
            mask[0] = True
        plan = PruningPlan({n: m.nonzero().squeeze(1).tolist() for n, m in keep.items()}, table.widths())
        measured, price = count(compact(net, plan, x, table), x), table.cost(keep)
        assert (measured.params, measured.macs) == (price.params, price.macs)


def test_after_two_rounds_equals_the_composed_plan(
    resnet: tuple[nn.Module, ChannelTable, torch.Tensor],
) -> None:
    net, table, x = resnet
    net = net.eval()
    first = PruningPlan({n: list(range(0, w, 2)) for n, w in table.widths().items()}, table.widths())
    small, later_table = compact(net, first, x, table), table.after(first)
    second = PruningPlan({n: list(range(w // 3, w)) for n, w in later_table.widths().items()}, later_table.widths())
    twice = compact(small, second, x, later_table)
    at_once = compact(net, first.compose(second), x, table)
    for (name, a), (_, b) in zip(twice.state_dict().items(), at_once.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    last = later_table.after(second)
    assert last.cost() == table.after(first.compose(second)).cost()
    assert last.widths() == first.compose(second).widths()


def test_after_equals_reading_the_compact_net(resnet: tuple[nn.Module, ChannelTable, torch.Tensor]) -> None:
    net, table, x = resnet
    plan = PruningPlan({n: list(range(1, w, 3)) for n, w in table.widths().items()}, table.widths())
    ours, read = table.after(plan), channel_groups(compact(net, plan, x, table), x)
    assert ours.widths() == read.widths() and ours.facts.shapes == read.facts.shapes
    assert ours.cost() == read.cost()
    for group in read:
        assert ours[group.name].cost == group.cost
        mine = {(m.tensor, m.axis, m.role): m.index for m in ours[group.name].members}
        assert mine.keys() == {(m.tensor, m.axis, m.role) for m in group.members}
        for member in group.members:
            assert torch.equal(mine[member.tensor, member.axis, member.role], member.index)


def test_slice_cuts_what_looks_like_a_tensor(lenet: tuple[nn.Module, ChannelTable, torch.Tensor]) -> None:
    _, table, _ = lenet
    plan = PruningPlan({"conv1": [3, 5], "conv2": [0, 7, 9]}, {"conv1": 20, "conv2": 50})
    scale = torch.randn(50, 20, 5, 5)
    assert torch.equal(table.slice("conv2.weight", scale, plan), scale[[0, 7, 9]][:, [3, 5]])
    bias = torch.randn(10)
    assert table.slice("fc2.bias", bias, plan) is bias
    with pytest.raises(PlanError, match=r"expected shape \(50, 20, 5, 5\)"):
        table.slice("conv2.weight", scale[:4], plan)
    with pytest.raises(PlanError, match="expected a parameter or buffer"):
        table.slice("conv3.weight", scale, plan)


def test_protect(lenet: tuple[nn.Module, ChannelTable, torch.Tensor]) -> None:
    net, _, x = lenet
    table = channel_groups(net, x, protect=["conv*"])
    assert table.names == ["fc1"]
    assert table.refused["conv1"] == "protected by 'conv*'"
    assert table.cost().params == 431_080
    with pytest.raises(ConfigError, match="near names: conv"):
        channel_groups(net, x, protect=["conv3"])
    inside = channel_groups(nets.resnet20(), torch.randn(2, 3, 32, 32), protect=["layer1"], try_cut=False)
    assert not [name for name in inside.names if name.startswith("layer1")] and "conv1" in inside.refused


def test_lookup_and_errors(lenet: tuple[nn.Module, ChannelTable, torch.Tensor]) -> None:
    net, table, _ = lenet
    assert "conv1" in table and "nothing" not in table and table[0] is table["conv1"]
    with pytest.raises(PlanError, match="cannot be cut: reaches the network's output"):
        table["fc2"]
    with pytest.raises(PlanError, match="near names: conv1"):
        table["conv11"]
    with pytest.raises(NetError, match="forward pass failed on the example"):
        channel_groups(net, torch.randn(2, 3, 28, 28))
    copied = pickle.loads(pickle.dumps(table))
    assert copied.widths() == table.widths() and copied["conv1"].cost == table["conv1"].cost
