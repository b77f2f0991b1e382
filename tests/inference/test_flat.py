"""The fast evaluation gives the numbers and gradients of the traced ELBO, on the same noise."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrobnn as pb
from pyrobnn.guides import KernelMeanField, MeanField
from pyrobnn.guides.flat import Pack
from pyrobnn.inference import flat
from pyrobnn.inference.elbo import ELBO, Parts
from pyrobnn.inference.flat import flat_elbo
from pyrobnn.inference.precision import weights_channels_last
from pyrobnn.moments import likelihood, local, rules_affine
from pyrobnn.moments.tensor import Source
from pyrobnn.priors.capped import CappedL1
from pyrobnn.priors.gaussian import Gaussian, Laplace, ScaleMixture
from pyrobnn.priors.noise import ARDNoise, SpikeNoise, TwoSpikeNoise


class Shifted(Gaussian):
    """Around other values than 0: one for a whole tensor, or one for each weight."""

    def distribution(self, name: str, value: Tensor) -> Any:
        if name.startswith("conv"):
            return dist.Normal(value.new_tensor(0.2).expand(value.shape), value.new_tensor(0.5).expand(value.shape))
        return dist.Normal(0.9 * value.detach(), torch.full_like(value, 0.4))


PRIORS: dict[str, Any] = {
    "shifted": Shifted,
    "gaussian": lambda: Gaussian({"conv*": 0.3, "*": "fan_in"}),
    "capped": CappedL1,
    "ard": ARDNoise,
    "two spikes": lambda: TwoSpikeNoise(0.4, 0.3),
    "spike and weights": lambda: SpikeNoise(0.3, weights=Gaussian("fan_in")),
}


def pair(prior: Any) -> tuple[pb.BayesianModel, MeanField, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    model = pb.BayesianModel(net, prior, data_size=100, groups=pb.channel_groups(net, x[:2]))
    guide = MeanField(model)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model, guide, x, y


def evaluated(parts: Any, model: pb.BayesianModel, guide: MeanField) -> tuple[Parts, Tensor]:
    for module in (model, guide):
        module.zero_grad()
    with model.frozen_statistics():
        torch.manual_seed(1)
        found = parts()
        (found.nll + 0.3 * found.total_kl(found.nll)).backward()
    named = [*guide.named_parameters(), *model.net.named_parameters()]
    return found, torch.cat([p.grad.flatten() for _, p in named])  # type: ignore[union-attr]


@pytest.fixture
def same_noise(monkeypatch: Any) -> None:
    """Outputs and weights that are drawn on the way take their noise from elsewhere, in both evaluations alike."""

    def noise(like: Tensor, generator: Any = None) -> Tensor:
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(like.numel())).to(like)

    def draw(self: Source) -> Tensor:
        return self.loc + noise(self.loc) * self.variance.sqrt()

    monkeypatch.setattr(rules_affine, "standard_noise", noise)
    monkeypatch.setattr(local, "standard_noise", noise)
    monkeypatch.setattr(Source, "draw", draw)
    monkeypatch.setattr(
        likelihood, "sampled_log_likelihood",
        lambda mean, variance, labels: likelihood.second_order_log_likelihood(mean, variance, labels),
    )  # fmt: skip
    monkeypatch.setitem(likelihood._KINDS, "sampled", likelihood.second_order_log_likelihood)


@pytest.mark.parametrize("estimator", ["weight", "local", "moments"])
@pytest.mark.parametrize("name", PRIORS)
def test_equals_the_traced_elbo(name: str, estimator: str, same_noise: None) -> None:
    model, guide, x, y = pair(PRIORS[name]())
    elbo = ELBO(estimator=estimator, site_weights={"conv2.weight": 2.0, "conv1.noise": torch.tensor(0.5)})
    if name == "spike and weights" and estimator != "weight":
        elbo.shared.update(guide.flat().names)  # type: ignore[union-attr]
    fast = flat_elbo(elbo, model, guide)
    assert fast is not None and fast.usable
    traced, wanted = evaluated(lambda: elbo.parts(model, guide, x, y), model, guide)
    quick, found = evaluated(lambda: fast.parts(x, y), model, guide)
    assert torch.allclose(quick.nll, traced.nll, rtol=1e-6)
    assert torch.allclose(quick.total_kl(quick.nll), traced.total_kl(traced.nll), rtol=1e-6)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("chunk", [100, 1 << 16])
@pytest.mark.parametrize("prior", [lambda: Gaussian("fan_in"), Shifted])
def test_layouts_pieces_and_particles_change_nothing(prior: Any, chunk: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(flat, "CHUNK", chunk)
    model, guide, x, y = pair(prior())
    weights_channels_last(guide, model.net)
    elbo = ELBO(num_particles=3, site_weights={"conv2.weight": 2.0})
    fast = flat_elbo(elbo, model, guide)
    assert fast is not None and not guide.loc["conv2|weight"].is_contiguous()
    traced, wanted = evaluated(lambda: elbo.parts(model, guide, x, y), model, guide)
    quick, found = evaluated(lambda: fast.parts(x, y), model, guide)
    assert torch.allclose(quick.nll, traced.nll, rtol=1e-6)
    assert torch.allclose(quick.total_kl(quick.nll), traced.total_kl(traced.nll), rtol=1e-6)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6


def test_where_the_trace_is_needed() -> None:
    model, guide, _x, _y = pair(Gaussian("fan_in"))
    assert flat_elbo(ELBO(), model, pyro.infer.autoguide.AutoNormal(model)) is None
    assert flat_elbo(ELBO(), model, KernelMeanField(model)) is None

    class Watched(ELBO):
        def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
            return super()._get_trace(model, guide, args, kwargs)

    assert flat_elbo(Watched(), model, guide) is None
    for prior in (ScaleMixture(), Laplace(0.1)):
        other, its, *_ = pair(prior)
        assert (flat_elbo(ELBO(), other, its) is None) == isinstance(prior, ScaleMixture)
    fast = flat_elbo(ELBO(), model, guide)
    assert fast is not None and fast.usable
    with pyro.poutine.scale(scale=2.0):
        assert not fast.usable
    fast.elbo.site_weights["fc2.weight"] = torch.ones(10, 64)
    assert not fast.usable


def test_parameters_stay_parameters_in_one_memory() -> None:
    a, b = (torch.nn.Parameter(torch.randn(shape)) for shape in ((2, 3), (4, 2, 3, 3)))
    before = [a.detach().clone(), b.detach().clone()]
    b.data = b.data.contiguous(memory_format=torch.channels_last)
    pack = Pack([a, b])
    flat = pack.flat()
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])
    assert a.data_ptr() == flat.data_ptr() and b.data_ptr() == flat.data_ptr() + 4 * 6
    torch.dot(flat, torch.arange(78.0)).backward()
    assert torch.equal(a.grad, torch.arange(6.0).view(2, 3))
    views = pack.views(torch.arange(78.0))
    assert torch.equal(b.grad, views[1]) and torch.equal(views[0], a.grad) and views[1].stride() == b.stride()
    with torch.no_grad():
        a.fill_(5.0)
    assert torch.equal(pack.flat()[:6], torch.full((6,), 5.0))  # the same memory
    a.data = torch.ones(2, 3)
    assert torch.equal(pack.flat()[:6], torch.ones(6)) and pack.flat().data_ptr() == a.data_ptr()


def test_a_copied_guide_moves_alone() -> None:
    _model, guide, _x, _y = pair(Gaussian("fan_in"))
    guide.flat().loc.flat()  # type: ignore[union-attr]
    twin = copy.deepcopy(guide)
    with torch.no_grad():
        twin.flat().loc.flat().zero_()  # type: ignore[union-attr]
    assert not any(bool(p.any()) for p in twin.loc.values()) and all(bool(p.any()) for p in guide.loc.values())
