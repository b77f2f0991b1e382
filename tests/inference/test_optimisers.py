"""Which parameters step at which rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.guides import NoLatents
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.muon import Muon
from pyrobnn.inference.optimisers import new_optimiser


class Guide(nn.Module):
    """Two parameters; scales step three times as far."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))

    def lr_factor(self, name: str) -> float:
        return 3.0 if name == "scale" else 1.0


def found(optimiser: torch.optim.Optimizer, wanted: nn.Parameter) -> dict[str, Any]:
    """The group that holds a parameter; it must be in one group alone."""
    (group,) = [g for g in optimiser.param_groups if any(p is wanted for p in g["params"])]
    return group


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD), ("muon", Muon)]
)
def test_rates_and_decay_by_kind_of_parameter(name: str, kind: type) -> None:
    net, guide = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(3, 4)), Guide()
    config = FitConfig(optimizer=name, lr=0.2, guide_lr=0.01, weight_decay=0.5, momentum=0.8)
    optimiser = new_optimiser(config, net, guide)
    assert type(optimiser) is kind
    assert found(optimiser, guide.loc)["peak"] == pytest.approx(0.01)
    assert found(optimiser, guide.scale)["peak"] == pytest.approx(0.03)
    conv, linear = net[0], net[1]
    others = 0.2 * (5 if name == "muon" else 1)
    assert found(optimiser, conv.weight)["peak"] == pytest.approx(0.2)
    assert found(optimiser, conv.weight)["weight_decay"] == (0 if name == "muon" else 0.5)
    assert found(optimiser, linear.weight)["peak"] == pytest.approx(others)
    assert found(optimiser, linear.weight)["weight_decay"] == 0.5
    for vector in (conv.bias, linear.bias, guide.loc, guide.scale):
        assert found(optimiser, vector)["weight_decay"] == 0
    assert sum(len(g["params"]) for g in optimiser.param_groups) == 6


def test_what_needs_no_gradient_is_left_out() -> None:
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    optimiser = new_optimiser(FitConfig(), net, NoLatents())
    assert [p is net.weight for g in optimiser.param_groups for p in g["params"]] == [True]
    net.weight.requires_grad_(False)
    with pytest.raises(pb.ConfigError, match="nothing to train"):
        new_optimiser(FitConfig(), net, NoLatents())
