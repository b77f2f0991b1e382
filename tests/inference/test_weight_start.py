"""The Fisher information of weights against gradients one by one, and widths against the optimum they are made for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.inference.scores import random_target
from pyrobnn.inference.weight_start import start_widths, weight_fisher


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12, 4))


X = torch.randn(21, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_it_is_the_mean_squared_gradient_of_every_example() -> None:
    module, state = net(), torch.get_rng_state()
    found = weight_fisher(module, [X[:13], (X[13:], None)], data_size=100, seed=5)
    assert torch.equal(state, torch.get_rng_state()) and module.training
    module.eval()
    wanted = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    torch.manual_seed(5)
    with torch.no_grad():
        parts = [random_target(torch.distributions.Categorical(logits=module(part))) for part in (X[:13], X[13:])]
    for x, direction in zip(X, torch.cat(parts), strict=True):
        module.zero_grad()
        (module(x[None]).log_softmax(1)[0] @ direction).backward()
        for name, p in module.named_parameters():
            wanted[name] += p.grad.square() * (100 / 21)
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5)


def test_information_of_a_softmax_layer_is_known() -> None:
    """F of w_kd is Σ_n p_k (1 − p_k) x_d²: many draws against it."""
    torch.manual_seed(0)
    module, x = nn.Linear(3, 4, bias=False), torch.randn(6, 3)
    found = weight_fisher(module, [x] * 600, data_size=6)["weight"]
    p = module(x).softmax(1).detach()
    assert torch.allclose(found, (p * (1 - p)).T @ x.square(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
def test_widths_are_the_optimum_of_a_quadratic_likelihood(kl_weight: float) -> None:
    """A Gaussian likelihood of a linear network is quadratic: the objective has no slope in log σ at the start."""
    torch.manual_seed(0)
    module, x = nn.Linear(3, 2, bias=False), torch.randn(4000, 3)

    model = pb.BayesianModel(module, pb.priors.Gaussian(0.5), data_size=4000, likelihood=pb.likelihoods.Gaussian(1.0))
    guide = pb.guides.MeanField(model)
    start_widths(model, guide, [x], kl_weight=kl_weight)
    scale = guide.moments()["weight"][1]
    # d/d log σ of E[NLL] + w KL, closed-form for this likelihood; each term alone is about w.
    curvature = x.square().sum(0).expand(2, 3)
    slope = scale.square() * curvature + kl_weight * (scale.square() / 0.25 - 1)
    assert (slope.abs() < 0.1 * kl_weight).all()


def test_wrong_use_is_refused() -> None:
    model = pb.BayesianModel(net(), pb.priors.Gaussian(), data_size=10)
    with pytest.raises(ConfigError, match="kl_weight must be positive, got 0"):
        start_widths(model, pb.guides.MeanField(model), [X], kl_weight=0)
    with pytest.raises(ConfigError, match="widths of a MeanField guide, got AutoNormal"):
        start_widths(model, pb.guides.auto(model), [X])
    with pytest.raises(ConfigError, match="at least one image"):
        weight_fisher(net(), [], data_size=10)
