"""Channel-noise priors on a small network."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyrobnn.channels import channel_groups
from pyrobnn.distributions import ARD, LogUniform, TwoSpike
from pyrobnn.errors import ConfigError
from pyrobnn.model import BayesianModel
from pyrobnn.priors.gaussian import Gaussian
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise, SpikeNoise, TwoSpikeNoise


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
    ).eval()


def model_with(prior, module: nn.Module | None = None) -> BayesianModel:
    module = module or net()
    return BayesianModel(module, prior, data_size=10, groups=channel_groups(module, torch.randn(2, 1, 6, 6)))


PRIORS = [(ARDNoise(), ARD), (LogUniformNoise(), LogUniform), (TwoSpikeNoise(0.3, 0.05), TwoSpike)]


@pytest.mark.parametrize(("prior", "family"), PRIORS)
def test_one_site_per_group(prior, family) -> None:
    model = model_with(prior)
    sites = model.sites()
    assert {name: tuple(site["value"].shape) for name, site in sites.items()} == {
        "0.noise": (4,),
        "2.noise": (6,),
    }
    for name, site in sites.items():
        assert isinstance(site["fn"].base_dist, family) and site["fn"].event_dim == 1
        assert model.group_of_site(name) == name[0]
        assert torch.equal(model.initial_values()[name], torch.ones(site["value"].shape))
    assert model.held == ()  # the weights stay trainable parameters


@pytest.mark.parametrize("prior", [prior for prior, _ in PRIORS] + [SpikeNoise(0.2)])
def test_noise_multiplies_the_activation(prior) -> None:
    module = net()
    model = model_with(prior, module)
    x = torch.randn(5, 1, 6, 6)
    noise = {name: torch.rand(site["value"].shape) * 0.9 + 0.05 for name, site in model.sites().items()}
    out = pyro.condition(model, data=noise)(x)

    hidden = module[1](module[0](x)) * noise["0.noise"].view(1, -1, 1, 1)
    hidden = module[3](module[2](hidden)) * noise["2.noise"].view(1, -1, 1, 1)
    assert torch.allclose(out, module[5](module[4](hidden)), atol=1e-6)


def test_some_groups_only() -> None:
    assert list(model_with(ARDNoise(groups="2")).sites()) == ["2.noise"]
    assert list(model_with(ARDNoise(groups=["0", "2*"])).sites()) == ["0.noise", "2.noise"]
    with pytest.raises(ConfigError, match="there are 0, 2"):
        model_with(ARDNoise(groups="conv*")).sites()


def test_without_groups_the_error_says_what_to_pass() -> None:
    with pytest.raises(ConfigError, match="channel_groups"):
        BayesianModel(net(), ARDNoise(), data_size=10).sites()


def test_a_weight_prior_under_the_noise() -> None:
    model = model_with(LogUniformNoise(weights=Gaussian(0.5)))
    assert set(model.sites()) == {"0.weight", "2.weight", "5.weight", "0.noise", "2.noise"}
    assert set(model.held) == {"0.weight", "2.weight", "5.weight"}
    start = model.initial_values()
    assert torch.equal(start["2.weight"], net()[2].weight)
    x = torch.randn(3, 1, 6, 6)
    out = pyro.condition(model, data=start)(x)
    assert torch.allclose(out, net()(x), atol=1e-6)


def test_noise_reaches_the_weights_gradients() -> None:
    model = model_with(SpikeNoise())
    loss: Tensor = (
        pyro.condition(model, data={n: v.requires_grad_() for n, v in model.initial_values().items()})(
            torch.randn(4, 1, 6, 6)
        )
        .square()
        .sum()
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogUniformNoise(a=0.0, b=0.0),
        lambda: LogUniformNoise(b=-1.0),
        lambda: TwoSpikeNoise(pi=1.0),
        lambda: TwoSpikeNoise(tau=0.0),
        lambda: SpikeNoise(tau=-0.1),
    ],
)
def test_settings_are_checked(make) -> None:
    with pytest.raises(ConfigError):
        make()
