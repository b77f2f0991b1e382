"""Spike-and-slab priors: sites, scales, where the factors act, inclusion by theory."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from torch import nn

from pyrobnn.channels import PruningPlan, channel_groups
from pyrobnn.errors import ConfigError
from pyrobnn.guides.spike_slab import SpikeSlabGuide
from pyrobnn.inference.shrink import shrink
from pyrobnn.model import BayesianModel
from pyrobnn.priors.gaussian import Gaussian
from pyrobnn.priors.spike_slab import EdgeSpikeSlab, SpikeSlab, group_rows, theory_inclusion
from pyrobnn.priors.turbo import Turbo


def net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def model_with(prior, norm: bool = False) -> BayesianModel:
    module = net(norm)
    return BayesianModel(module, prior, data_size=10, groups=channel_groups(module, torch.randn(2, 1, 6, 6)))


WEIGHTS = {"0.weight", "3.weight", "6.weight"}
SITES = {
    "ig": {"gate"},
    "gl": {"gate", "local"},
    "ghs": {"gate", "local_a", "local_b"},
}
GLOBAL = {"ig": set(), "gl": {"rate"}, "ghs": {"a", "b"}}


@pytest.mark.parametrize("slab", ["ig", "gl", "ghs"])
def test_sites(slab: str) -> None:
    model = model_with(SpikeSlab(slab=slab))
    sites = model.sites()
    groups = {"0": 4, "3": 6}
    expected = {f"{g}.{what}" for g in groups for what in SITES[slab]}
    expected |= {f"global.{g}.{what}" for g in groups for what in GLOBAL[slab]} | WEIGHTS
    assert set(sites) == expected
    for name, site in sites.items():
        if name in WEIGHTS:
            assert site["fn"].event_dim == site["value"].dim()
        elif name.startswith("global."):
            assert site["value"].shape == () and model.group_of_site(name) is None
        else:
            assert site["value"].shape == (groups[name[0]],) and model.group_of_site(name) == name[0]


@pytest.mark.parametrize(("slab", "kappa"), [("ig", 1.0), ("gl", 1.0), ("ghs", 4 / math.sqrt(17))])
def test_start_keeps_the_function_up_to_kappa(slab: str, kappa: float) -> None:
    model = model_with(SpikeSlab(slab=slab)).eval()
    x = torch.randn(3, 1, 6, 6)
    out = pyro.condition(model, data=model.initial_values())(x)
    module = net().eval()
    hidden = module[2](module[0](x)) * kappa
    hidden = module[4](module[3](hidden)) * kappa
    assert torch.allclose(out, module[6](module[5](hidden)), atol=1e-5)


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0, 10.0])
def test_horseshoe_start_is_near_one_where_c_allows(c: float) -> None:
    start = model_with(SpikeSlab(slab="ghs", c=c)).initial_values()
    square = start["0.local_a"] * start["0.local_b"] * start["global.0.a"] * start["global.0.b"]
    kappa = (square * c**2 / (square + c**2)).sqrt()
    assert torch.allclose(kappa, torch.tensor(1.0 if c > 1.04 else 0.9701 * c), atol=1e-3)


def test_gate_and_kappa_act_on_the_activation_even_in_front_of_a_batchnorm() -> None:
    model = model_with(SpikeSlab(slab="gl"), norm=True).train()
    values = model.initial_values()
    values["0.gate"] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    values["0.local"] = torch.tensor([4.0, 1.0, 0.25, 1.0])
    x = torch.randn(8, 1, 6, 6)
    module = net(norm=True).train()
    factor = torch.tensor([2.0, 0.0, 0.5, 1.0]).view(1, -1, 1, 1)
    expected = module[6](module[5](module[4](module[3](module[2](module[1](module[0](x))) * factor))))
    assert torch.allclose(pyro.condition(model, data=values)(x), expected, atol=1e-5)


def test_row_scale_and_activation_scale_agree_without_normalisation() -> None:
    x = torch.randn(5, 1, 6, 6)
    model = model_with(SpikeSlab(slab="gl")).eval()
    values = model.initial_values()
    values["0.local"] = torch.tensor([4.0, 1.0, 0.25, 9.0])
    module = net().eval()
    with torch.no_grad():  # as published: a factor on the rows and the bias that produce the channel
        module[0].weight.mul_(torch.tensor([2.0, 1.0, 0.5, 3.0]).view(-1, 1, 1, 1))
        module[0].bias.mul_(torch.tensor([2.0, 1.0, 0.5, 3.0]))
    assert torch.allclose(pyro.condition(model, data=values)(x), module(x), atol=1e-5)


def test_group_lasso_slab_is_a_multivariate_laplace() -> None:
    """τ w̃ with τ² ~ Gamma((k + 1)/2, ς²/2) and w̃ ~ N(0, I_k): its norm is Gamma(k, ς)."""
    model = model_with(SpikeSlab(slab="gl"))
    size, _ = group_rows(model.groups["0"], model.view())
    assert size == 10  # 3 · 3 weights and a bias
    torch.manual_seed(0)
    rate = 3.0
    fixed = pyro.condition(model.prior, data={"global.0.rate": torch.tensor(rate**2)})
    norms = []
    with torch.no_grad():
        for _ in range(300):
            trace = pyro.poutine.trace(fixed).get_trace(model.view())
            tau = trace.nodes["0.local"]["value"].sqrt()
            norms += (tau * torch.randn(size, 4).norm(dim=0)).tolist()
    assert stats.kstest(np.array(norms), stats.gamma(size, scale=1 / rate).cdf).pvalue > 1e-3


def test_inclusion_by_theory_and_by_number() -> None:
    assert theory_inclusion(800, 800) == pytest.approx(7.5e-4, rel=0.01)  # the authors' figures
    assert theory_inclusion(500, 800) == pytest.approx(1.2e-3, rel=0.01)
    assert theory_inclusion(512, 4608) == pytest.approx(math.exp(-1) / 512)
    model = model_with(SpikeSlab("theory"))
    for name, k in (("0", 4), ("3", 6)):
        p = model.sites()[f"{name}.gate"]["fn"].base_dist
        assert torch.allclose(p.probs, torch.tensor(1 / k), rtol=1e-3)
    p = model_with(SpikeSlab(0.02)).sites()["3.gate"]["fn"].base_dist
    assert torch.allclose(p.probs, torch.tensor(0.02))


def test_gates_alone() -> None:
    model = model_with(SpikeSlab(0.1, select=None))
    assert set(model.sites()) == {"0.gate", "3.gate"} and model.held == ()


def test_edge_variant_gates_every_weight() -> None:
    prior = EdgeSpikeSlab(0.05)
    model = BayesianModel(net(), prior, data_size=10)
    assert set(model.sites()) == WEIGHTS | {f"{name}.gate" for name in WEIGHTS}
    values = model.initial_values()
    torch.manual_seed(1)
    mask = (torch.rand_like(values["3.weight"]) < 0.5).float()
    values["3.weight.gate"] = mask
    x, module = torch.randn(3, 1, 6, 6), net()
    with torch.no_grad():
        module[3].weight.mul_(mask)
    assert torch.allclose(pyro.condition(model, data=values)(x), module(x), atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SpikeSlab(0.0),
        lambda: SpikeSlab(1.0),
        lambda: SpikeSlab("guess"),
        lambda: SpikeSlab(sigma0=0.0),
        lambda: SpikeSlab(slab="laplace"),
        lambda: SpikeSlab(slab="ghs", c=0.0),
        lambda: EdgeSpikeSlab(select=None),
    ],
)
def test_settings_are_checked(make) -> None:
    with pytest.raises(ConfigError):
        make()


def test_relative_slabs_keep_their_unit_when_the_network_is_cut() -> None:
    model = model_with(SpikeSlab("theory", 2.0, relative=True))
    sites = model.sites()
    for name in WEIGHTS:
        rms = dict(net().named_parameters())[name].square().mean().sqrt()
        assert torch.allclose(sites[name]["fn"].base_dist.scale, 2.0 * rms)
    plan = PruningPlan({"0": [1], "3": [0, 2, 5]}, {"0": 4, "3": 6})
    small, _ = shrink(model, SpikeSlabGuide(model), plan)
    # The same from saved state, as a later round starts: units and λ are those of the first network.
    prior = SpikeSlab("theory", 2.0, relative=True)
    prior.load_state_dict(model.prior.state_dict())
    later = BayesianModel(small.deterministic({}), prior, data_size=10, groups=small.groups)
    for found in (small.sites(), later.sites()):
        for name in WEIGHTS:
            assert float(found[name]["fn"].base_dist.scale.max()) == float(sites[name]["fn"].base_dist.scale.max())
        for gate in ("0.gate", "3.gate"):
            assert float(found[gate]["fn"].base_dist.probs.max()) == float(sites[gate]["fn"].base_dist.probs.max())


def test_one_prior_in_two_models() -> None:
    """What is random belongs to the model; what was read from a first network is not silently that of a second."""
    prior = Gaussian(1.0)
    first = BayesianModel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), prior, data_size=8)
    second = BayesianModel(nn.Sequential(nn.Linear(3, 2)), prior, data_size=8)
    assert list(first.sites()) == ["0.weight", "2.weight"] and list(second.sites()) == ["0.weight"]
    assert set(first.initial_values()) == {"0.weight", "2.weight"}

    larger = net()
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter.mul_(100)
    groups = channel_groups(larger, torch.randn(2, 1, 6, 6))
    for make in (lambda: SpikeSlab(0.1, relative=True), lambda: Turbo()):
        once = make()
        model_with(once)
        model_with(once)  # the same weights again
        with pytest.raises(ConfigError, match="a new prior for each model"):
            BayesianModel(larger, once, data_size=10, groups=groups)
