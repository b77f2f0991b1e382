"""Observation models against direct sums."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch.distributions import Normal

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.likelihoods import Bernoulli, Categorical, Gaussian, PixelCategorical


def test_one_logit_is_that_of_the_second_class() -> None:
    logit, labels = torch.randn(6, 1), torch.randint(2, (6,))
    found = Categorical()(logit).log_prob(labels)
    torch.testing.assert_close(found, torch.distributions.Bernoulli(logits=logit[:, 0]).log_prob(labels.float()))


def test_labels_of_an_image_add_up() -> None:
    logits, targets = torch.randn(5, 3), (torch.rand(5, 3) < 0.5).float()
    p = torch.sigmoid(logits)
    expected = (targets * p.log() + (1 - targets) * (1 - p).log()).sum(1)
    torch.testing.assert_close(Bernoulli()(logits).log_prob(targets), expected)


def test_pixels_of_an_image_are_worth_one_observation() -> None:
    logits, labels = torch.randn(3, 4, 5, 6), torch.randint(4, (3, 5, 6))
    labels[0, :2], labels[2] = -100, -100
    found = PixelCategorical(observations=2.0)(logits)
    assert found.shape() == labels.shape
    log_p = logits.log_softmax(1)
    for k in range(2):
        picked = [log_p[k, labels[k, i, j], i, j] for i in range(5) for j in range(6) if labels[k, i, j] != -100]
        assert float(found.log_prob(labels)[k]) == pytest.approx(2 * float(torch.stack(picked).mean()), rel=1e-5)
    assert float(found.log_prob(labels)[2]) == 0.0
    assert found.sample().shape == labels.shape


def test_profiled_noise_is_the_best_scale_and_its_gradient_is_that_of_the_profile() -> None:
    loc, y = torch.randn(7, 2, dtype=torch.float64, requires_grad=True), torch.randn(7, 2, dtype=torch.float64)

    def profile(loc: torch.Tensor) -> torch.Tensor:
        scales = torch.linspace(0.2, 4, 20_000, dtype=torch.float64)
        return Normal(loc, scales[:, None, None]).log_prob(y).sum((1, 2)).max()

    from pyrobnn.likelihoods import ProfiledNormal

    total = ProfiledNormal(loc).log_prob(y).sum()
    assert float(total.detach()) == pytest.approx(float(profile(loc.detach())), abs=1e-5)
    total.backward()
    step = torch.zeros_like(loc.detach())
    step[3, 1] = 1e-4
    slope = float(profile(loc.detach() + step) - profile(loc.detach() - step)) / 2e-4
    assert float(loc.grad[3, 1]) == pytest.approx(slope, rel=1e-3)  # type: ignore[index]
    exact = Gaussian(None)(y.float())
    assert torch.isfinite(exact.log_prob(y.float())).all() and exact.shape() == y.shape


def test_settings_that_mean_nothing() -> None:
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="noise scale"):
            Gaussian(scale)
    with pytest.raises(ConfigError, match="positive number of observations"):
        PixelCategorical(0)
    with pytest.raises(ConfigError, match=r"logits \[B, K, H, W\]"):
        PixelCategorical()(torch.zeros(3, 4))


class Named(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"aux": x, "out": self.fc(x)}


def test_a_likelihood_of_your_own_sees_all_that_the_network_returns() -> None:
    net, x, y = Named(), torch.randn(6, 3), torch.randint(2, (6,))

    def own(said: dict[str, torch.Tensor]) -> torch.distributions.Distribution:
        return pyro.distributions.Categorical(logits=said["out"])

    losses = [
        float(
            pyro.poutine.trace(pb.BayesianModel(net, data_size=6, likelihood=likelihood))
            .get_trace(x, y)
            .log_prob_sum()
            .detach()
        )
        for likelihood in (own, Categorical())
    ]
    assert losses[0] == pytest.approx(losses[1])


def test_labels_of_a_bernoulli_may_be_integers() -> None:
    net, x, y = torch.nn.Linear(3, 1), torch.randn(6, 3), torch.randint(2, (6,))
    model = pb.BayesianModel(net, data_size=6, likelihood=lambda out: pyro.distributions.Bernoulli(logits=out[:, 0]))
    found = pyro.poutine.trace(model).get_trace(x, y).log_prob_sum()
    expected = torch.distributions.Bernoulli(logits=net(x)[:, 0]).log_prob(y.float()).sum()
    torch.testing.assert_close(found, expected)
