"""Weight priors: densities, scales per pattern, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import simpson
from scipy.stats import norm
from torch import nn
from torch.distributions import Normal, kl_divergence

from pyrobnn.errors import ConfigError
from pyrobnn.priors.base import NetView
from pyrobnn.priors.gaussian import Gaussian, Laplace, ScaleMixture


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def view_of(module: nn.Module) -> NetView:
    return NetView(
        {**dict(module.named_parameters()), **dict(module.named_buffers())}, [], None, ("0.weight", "3.weight")
    )


def test_default_selection_is_the_weights_of_convolutions_and_linear_layers() -> None:
    module, prior = net(), Gaussian()
    assert prior.random(module) == ["0.weight", "3.weight"]
    torch.manual_seed(1)
    values = prior(view_of(module))
    assert {name: tuple(v.shape) for name, v in values.items()} == {
        "0.weight": (4, 2, 3, 3),
        "3.weight": (3, 16),
    }
    start = prior.initial(view_of(module))
    assert torch.equal(start["3.weight"], module[3].weight) and not start["3.weight"].requires_grad


@pytest.mark.parametrize(
    ("scale", "conv", "linear"),
    [
        (0.3, 0.3, 0.3),
        ("fan_in", math.sqrt(2 / 18), math.sqrt(2 / 16)),
        ({"0.*": 0.2, "*": "fan_in"}, 0.2, math.sqrt(2 / 16)),
    ],
)
def test_scales(scale, conv: float, linear: float) -> None:
    module, prior = net(), Gaussian(scale)
    prior.random(module)
    for name, expected in (("0.weight", conv), ("3.weight", linear)):
        p = prior.distribution(name, view_of(module).tensors[name])
        assert p.mean.abs().max() == 0 and torch.allclose(p.stddev, torch.tensor(expected))


def test_a_mapping_without_a_match_is_refused() -> None:
    module, prior = net(), Gaussian({"conv*": 1.0})
    prior.random(module)
    with pytest.raises(ConfigError, match=r"0\.weight"):
        prior(view_of(module))


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan, "fan", {}, {"*": 0.0}, {"*": {"*": 1.0}}, None, True])
@pytest.mark.parametrize("family", [Gaussian, Laplace])
def test_bad_scales_are_refused(family, scale) -> None:
    with pytest.raises(ConfigError, match="scale"):
        family(scale)


@pytest.mark.parametrize(
    "settings", [{"mix": 0.0}, {"mix": 1.5}, {"narrow": 2.0}, {"wide": -1.0}, {"narrow": "fan_in"}]
)
def test_bad_mixtures_are_refused(settings) -> None:
    with pytest.raises(ConfigError):
        ScaleMixture(**settings)


def test_scale_mixture_density() -> None:
    p = ScaleMixture(0.25, 1.0, 0.1).distribution("w", torch.zeros(5, dtype=torch.float64))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    expected = np.log(0.25 * norm(0, 1).pdf(x.numpy()) + 0.75 * norm(0, 0.1).pdf(x.numpy()))
    assert np.allclose(p.log_prob(x).numpy(), expected)


def test_laplace_kl_is_closed_form_and_right() -> None:
    p = Laplace(0.4).distribution("w", torch.zeros((), dtype=torch.float64))
    q = Normal(torch.tensor(0.3, dtype=torch.float64), 0.2)
    t = np.linspace(-3, 3, 100_001)
    log_p = -np.abs(t) / 0.4 - math.log(0.8)
    expected = simpson(norm(0.3, 0.2).pdf(t) * (norm(0.3, 0.2).logpdf(t) - log_p), x=t)
    assert kl_divergence(q, p).item() == pytest.approx(expected, abs=1e-6)
