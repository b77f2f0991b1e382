"""Which parameters step at which rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.guides import MeanField, NoLatents
from pyrobnn.guides.local import local_params
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.loop import Loop
from pyrobnn.inference.muon import Muon
from pyrobnn.inference.optimisers import load_optimiser, new_optimiser
from pyrobnn.priors.gaussian import Gaussian


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


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD), ("muon", Muon)])
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


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("bayesian", [False, True])
def test_moments_lie_in_memory_as_their_parameters_do(optimizer: str, bayesian: bool) -> None:
    """A fused optimiser walks through parameter, gradient and moments alike, whatever their strides say."""
    data = pb.load_data("digits")
    data = replace(data, train=data.train.take(64))
    torch.manual_seed(0)
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    prior = Gaussian("fan_in") if bayesian else None
    model = pb.BayesianModel(net, prior, data_size=64, groups=pb.channel_groups(net, data.example))
    guide = MeanField(model) if bayesian else NoLatents()
    config = FitConfig(epochs=3, batch_size=32, optimizer=optimizer, precision="fp32", validate=False)

    def check(loop: Loop) -> int:
        seen = 0
        for parameter, moments in loop.optimiser.state.items():
            for value in (parameter.grad, *moments.values()):
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    assert value.stride() == parameter.stride()
                    seen += 1
        return seen

    with local_params(model, guide), torch.random.fork_rng(devices=[]):
        loop = Loop(model, guide, data, config)
        loop.run_epoch(lambda step, loss: None)
        assert check(loop) > 10
        loop.cut(pb.PruningPlan({"conv1": [1, 4, 6], "conv2": [0, 3, 5, 8]}, {"conv1": 16, "conv2": 32}))
        check(loop)
        loop.run_epoch(lambda step, loss: None)
        assert check(loop) > 10
        state = loop.optimiser.state_dict()
        state["state"] = {
            k: {n: v.contiguous() if isinstance(v, torch.Tensor) else v for n, v in entry.items()}
            for k, entry in state["state"].items()
        }
        load_optimiser(loop.optimiser, state)
        check(loop)
