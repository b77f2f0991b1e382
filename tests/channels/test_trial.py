"""The trial finds the groups that are wrong, and only those, alone and in batches."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pyrobnn import nets
from pyrobnn.channels import ChannelGroup, ChannelTable, channel_groups, scratch, trial


class Chain(nn.Module):
    """Seven convolutions; the activations named in `bad` are divided by their number of channels."""

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__()
        self.bad = bad
        self.layers = nn.ModuleList([nn.Conv2d(3 if at == 0 else 8, 8, 1) for at in range(7)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for at, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if at in self.bad:
                x = x / x.shape[1] * 8
        return self.head(x)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("bad", [(), (3,), (0, 5, 6)])
def test_finds_exactly_the_wrong_groups(
    bad: tuple[int, ...], double: bool, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_ALONE_UP_TO", 10**9 if alone else 0)
    monkeypatch.setattr(scratch, "_DOUBLE_UP_TO", 10**9 if double else 0)
    table = channel_groups(Chain(bad), torch.randn(2, 3, 4, 4))
    assert set(table.refused) == {"head", *(f"layers.{at}" for at in bad)}
    assert table.names == [f"layers.{at}" for at in range(7) if at not in bad]


@pytest.mark.parametrize("role", ["in", "through", "out"])
def test_a_table_with_a_wrong_index_is_refused(role: str) -> None:
    """Swap two units in one member: the shapes still fit, the numbers do not."""
    net, x = nets.resnet20(), torch.randn(2, 3, 32, 32)
    table = channel_groups(net, x, try_cut=False)

    def spoil(group: ChannelGroup) -> ChannelGroup:
        at = next(at for at, member in enumerate(group.members) if member.role == role)
        members = list(group.members)
        members[at] = replace(members[at], index=members[at].index.roll(1, 0))
        return replace(group, members=tuple(members))

    name = "layer1.1.conv1"
    wrong = ChannelTable([spoil(g) if g.name == name else g for g in table], table.facts, table.refused)
    tried = trial.try_groups(copy.deepcopy(net), (x,), wrong)
    assert set(tried.refused) - set(table.refused) == {name}
    assert "compact differs from mask" in tried.refused[name]
