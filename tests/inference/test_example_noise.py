"""Channel noise drawn for every example: the same expectation, less variance, and the network's own arithmetic."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels.by_example import GivenFactors, NotPerExample
from pyrobnn.errors import ConfigError
from pyrobnn.guides.noise import NormalNoise, TruncatedLogNormalNoise
from pyrobnn.inference.elbo import ELBO
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise


def residual() -> tuple[nn.Module, Tensor]:
    """Convolutions, a residual sum, a grouped convolution, normalisation and a flattened head."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.inner, self.back = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
            self.deep, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Linear(4 * 36, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm(self.stem(x)))
            x = torch.relu(x + self.back(torch.relu(self.inner(x))))
            return self.head(torch.relu(self.deep(x)).flatten(1))

    torch.manual_seed(0)
    return Net(), torch.randn(5, 1, 6, 6)


def test_factors_are_those_of_folded_weights_example_by_example() -> None:
    net, x = residual()
    net.eval()
    table = pb.channel_groups(net, x)
    values = {group.name: torch.rand(len(x), group.channels) + 0.5 for group in table}
    found = GivenFactors(net, table, values).run(lambda: net(x))
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    gates = pb.channels.GateMap(table)
    for example in range(len(x)):
        one = gates.apply(tensors, {name: value[example] for name, value in values.items()})
        expected = torch.func.functional_call(net, one, (x[example : example + 1],))
        torch.testing.assert_close(found[example : example + 1], expected, rtol=1e-4, atol=1e-5)


def pair(prior: object = None, scale: float = 0.4) -> tuple[pb.BayesianModel, NormalNoise, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Flatten(), nn.Linear(3, 1, bias=False)).double()
    x = torch.rand(64, 1, 1, 1, dtype=torch.float64)
    y = net(x).detach()
    table = pb.channel_groups(net, x[:2])
    likelihood = pb.likelihoods.Gaussian(0.5)
    model = pb.BayesianModel(net, prior or ARDNoise(), data_size=64, groups=table, likelihood=likelihood)
    guide = NormalNoise(model)
    site = next(iter(model.sites()))
    guide.set_scale(site, torch.ones(3).double(), torch.full((3,), scale).double())
    return model, guide, x, y


def test_the_expected_loss_is_the_same_and_its_gradient_less_noisy() -> None:
    """Linear network: E NLL = ½ Σ_n Σ_c σ_c² a_nc² / s² in closed form, with the gradient σ a² / s² in every σ."""
    model, guide, x, y = pair()
    weights = [p.detach() for p in model.net.parameters()]
    activations = (x.flatten(1) @ weights[0].reshape(3, 1).T) * weights[1]
    exact = (0.4**2 * activations.square() / 0.5**2).sum(0)  # ∂/∂log σ
    log_scale = next(iter(guide.log_scale.values()))
    found = {}
    for estimator in ("weight", "example"):
        elbo = ELBO(estimator=estimator)
        rows = []
        for _ in range(300):
            parts = elbo.parts(model, guide, x, y)
            rows.append(torch.autograd.grad(parts.nll, log_scale)[0])
        found[estimator] = torch.stack(rows)
        error = found[estimator].mean(0) - exact
        assert bool((error.abs() < 5 * found[estimator].std(0) / 300**0.5).all()), estimator
        kl = parts.total_kl(parts.nll)
        assert float(kl.detach()) == pytest.approx(3 * 0.5 * torch.log1p(torch.tensor(0.4**-2)).item(), rel=1e-6)
    assert bool((found["example"].std(0) < 0.4 * found["weight"].std(0)).all())


def test_a_fit_of_a_real_network_and_of_log_uniform_noise() -> None:
    data = pb.load_data("digits")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    table = pb.channel_groups(net, data.example)
    for prior, guide_of in ((ARDNoise(), NormalNoise), (LogUniformNoise(), TruncatedLogNormalNoise)):
        model = pb.BayesianModel(net, prior, data_size=len(data.train), groups=table)
        options = {"epochs": 1, "max_steps": 4, "precision": "fp32", "progress": False, "estimator": "example"}
        result = pb.fit(model, guide_of(model), data, **options)
        assert result.model.example_factors is None
        trace = poutine.trace(result.guide).get_trace()
        assert trace.nodes["0.noise"]["value"].shape == (4,)  # the site itself is as ever


def test_what_takes_no_factors_by_example_is_refused() -> None:
    model, guide, x, y = pair()
    plain = pb.BayesianModel(model.bare_net, pb.priors.Gaussian(1.0), data_size=64, likelihood=model.likelihood)
    with pytest.raises(ConfigError, match="no|none"):
        ELBO(estimator="example").parts(plain, pb.guides.MeanField(plain), x, y)
    with pytest.raises(ConfigError, match="BayesianModel itself"):
        ELBO(estimator="example").parts(lambda *a: model(*a), guide, x, y)
    with pytest.raises(ConfigError, match="estimator"):
        ELBO(estimator="examples")
    assert model.example_factors is None

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bchw,oc->bo", self.a(x), self.b.weight[:, :, 0, 0])

    net = Computed()
    table = pb.channel_groups(nn.Sequential(net.a, net.b), x[:2].float())
    values = {group.name: torch.ones(64, group.channels) for group in table}
    with pytest.raises(NotPerExample, match="1.weight"):
        GivenFactors(nn.Sequential(net.a, net.b), table, values).run(lambda: net.a(x.float()))
    pyro.clear_param_store()
