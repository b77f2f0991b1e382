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

    found = pb.largest_cut(net, table, nats, quality, 0.5, tolerance=0.005)
    small = pb.compact(net, found, None, groups=table)
    assert quality(small) >= 0.5
    for share in torch.linspace(0.05, 0.99, 95):
        other = pb.compact(net, pb.plan_for_budget(nats, table, target_macs=float(share)), None, groups=table)
        if quality(other) >= 0.5:
            assert quality(small) <= quality(other) + 0.02


def test_nothing_is_cut_where_no_cut_keeps_it() -> None:
    net = _net()
    table = pb.channel_groups(net, torch.zeros(2, 1, 8, 8))
    nats = {group.name: torch.ones(group.channels) for group in table}
    assert pb.largest_cut(net, table, nats, lambda small: 0.0, 0.5).is_full
    with pytest.raises(ConfigError, match="tolerance"):
        pb.largest_cut(net, table, nats, lambda small: 0.0, 0.5, tolerance=0)
