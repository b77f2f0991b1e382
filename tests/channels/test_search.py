"""The largest cut within a quality: against trying every budget on a grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))


def test_it_is_the_smallest_that_keeps_the_quality() -> None:
    net = _net()
    table = pb.channel_groups(net, torch.zeros(2, 1, 8, 8))
    nats = {group.name: torch.arange(1.0, group.channels + 1) for group in table}
    dense = sum(p.numel() for p in net.parameters())

    def quality(small: nn.Module) -> float:  # monotone in size, so a grid search knows the answer
        return sum(p.numel() for p in small.parameters()) / dense

    found = pb.largest_cut(net, table, nats, quality, 0.5, tolerance=0.005, prices=["both"])
    small = pb.compact(net, found, None, groups=table)
    assert quality(small) >= 0.5
    for share in torch.linspace(0.2, 0.99, 80):
        other = pb.compact(
            net,
            pb.plan_for_budget(nats, table, target_macs=float(share), target_params=float(share)),
            None,
            groups=table,
        )
        if quality(other) >= 0.5:
            assert quality(small) <= quality(other) + 0.02


def test_the_better_of_the_prices_is_taken() -> None:
    net = _net()
    table = pb.channel_groups(net, torch.zeros(2, 1, 8, 8))
    nats = {group.name: torch.arange(1.0, group.channels + 1) for group in table}
    dense = table.cost(None)

    def sizes(plan: pb.PruningPlan) -> float:
        cost = table.after(plan).cost(None)
        return float(cost.macs * cost.params) / float(dense.macs * dense.params)

    def quality(small: nn.Module) -> float:  # parameters of the linear layer cost nothing, convolutions all
        return small[2].weight.numel() / net[2].weight.numel()  # type: ignore[index, union-attr]

    every = [pb.largest_cut(net, table, nats, quality, 0.5, prices=[p]) for p in ("both", "macs", "params")]
    assert sizes(pb.largest_cut(net, table, nats, quality, 0.5)) == min(map(sizes, every))


def test_nothing_is_cut_where_no_cut_keeps_it() -> None:
    net = _net()
    table = pb.channel_groups(net, torch.zeros(2, 1, 8, 8))
    nats = {group.name: torch.ones(group.channels) for group in table}
    assert pb.largest_cut(net, table, nats, lambda small: 0.0, 0.5).is_full
    with pytest.raises(ConfigError, match="tolerance"):
        pb.largest_cut(net, table, nats, lambda small: 0.0, 0.5, tolerance=0)
    with pytest.raises(ConfigError, match="prices"):
        pb.largest_cut(net, table, nats, lambda small: 0.0, 0.5, prices=["latency"])


@pytest.mark.parametrize("copy", [True, False])
def test_the_network_is_afterwards_as_before(copy: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    net[1].register_buffer("scale", torch.rand(8), persistent=False)
    net[1].eval()
    table = pb.channel_groups(net, torch.zeros(2, 1, 8, 8))
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    values = {name: value.detach().clone() for name, value in tensors.items()}
    seen = []

    def quality(small: nn.Module) -> float:
        seen.append(small[0].out_channels)
        small.train()(torch.randn(4, 1, 8, 8))
        with torch.no_grad():
            small[4].weight.zero_()
        return float(small[0].out_channels > 4)

    found = pb.largest_cut(net, table, {"0": torch.arange(8.0)}, quality, 0.5, copy=copy)
    assert found.widths() == {"0": 5} and set(seen) > {5}
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert all(after[name] is tensor and torch.equal(tensor, values[name]) for name, tensor in tensors.items())
    assert net[0].out_channels == net[1].num_features == 8 and net[4].in_features == 288
    assert [module.training for module in net] == [True, False, True, True, True]
    assert "1.scale" not in net.state_dict()
