"""The posterior predictive: draws, and one pass of means and variances."""

from __future__ import annotations

import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.inference.predict import standard_points
from pyrobnn.priors.noise import ARDNoise


def fitted(scale: float = 0.3) -> tuple[pb.BayesianModel, pb.guides.KernelMeanField, Tensor]:
    """A linear classifier with a given posterior."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=10)
    guide = pb.guides.KernelMeanField(model, init_scale=scale)
    x = torch.randn(30, 1, 2, 3)
    model.initialise((x[:2], torch.zeros(2, dtype=torch.long)), guide)
    return model, guide, x


@pytest.mark.parametrize("scale", [*(pytest.param(s, marks=pytest.mark.slow) for s in (0.1, 3.0)), 1.0])
def test_one_pass_agrees_with_many_draws(scale: float) -> None:
    """Linear, so the logits are Gaussian and independent: what is left is 1/sqrt(4000) and the quadrature."""
    model, guide, x = fitted(scale)
    one = pb.predict(model, guide, x, estimator="moments")
    for estimator in ("weight", "local"):
        many = pb.predict(model, guide, x, draws=4000, estimator=estimator)
        assert many.draws == 4000
        torch.testing.assert_close(one.probs, many.probs, rtol=0, atol=0.05)
        torch.testing.assert_close(one.mutual_information, many.mutual_information, rtol=0, atol=0.05)
    assert torch.allclose(one.probs.sum(1), torch.ones(30))
    assert float(one.mutual_information.mean()) > 0


def test_no_uncertainty_is_the_plain_network() -> None:
    model, guide, x = fitted(1e-6)
    wanted = torch.softmax(pb.deterministic_net(model, guide)(x), -1).detach()
    for estimator in ("weight", "local", "moments"):
        got = pb.predict(model, guide, x, draws=2, estimator=estimator)
        torch.testing.assert_close(got.probs, wanted, rtol=1e-3, atol=1e-4)
        assert float(got.mutual_information.max()) < 1e-4


def test_nothing_is_changed_and_draws_depend_on_the_seed_alone() -> None:
    data = pb.load_data("digits")
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    model = pb.BayesianModel(net, pb.priors.Gaussian("fan_in"), data_size=100).train()
    guide = AutoNormal(model)
    model.initialise((data.example, torch.zeros(len(data.example), dtype=torch.long)), guide)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    rng = torch.get_rng_state()
    split = data.test.take(40)
    results = [pb.predict(model, guide, split, draws=3, seed=s, batch_size=b) for s, b in ((1, 40), (1, 7), (2, 40))]
    assert torch.equal(torch.get_rng_state(), rng) and model.training
    assert all(torch.equal(buffers[n], b) for n, b in model.named_buffers())
    torch.testing.assert_close(results[0].probs, results[1].probs)
    assert not torch.allclose(results[0].probs, results[2].probs)
    moments = [pb.predict(model, guide, split, estimator="moments", seed=s) for s in (1, 2)]
    assert torch.equal(moments[0].probs, moments[1].probs)
    assert 0 <= moments[0].metrics(next(iter(split.batches(40)))[1]).accuracy <= 1


def test_points_of_the_standard_normal() -> None:
    z = standard_points(10, 1024)
    assert z.shape == (1024, 10) and torch.equal(z, standard_points(10, 1024))
    torch.testing.assert_close(z.mean(0), torch.zeros(10), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.T @ z / 1024, torch.eye(10), rtol=0, atol=0.06)


def test_softmax_integral() -> None:
    """The points against 200,000 draws, ten logits with unit variance."""
    torch.manual_seed(1)
    mean = torch.randn(10)
    wanted = torch.softmax(mean + torch.randn(200_000, 10), -1).mean(0)
    got = torch.softmax(mean + standard_points(10), -1).mean(0)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.01)


def test_bad_input() -> None:
    model, guide, x = fitted()
    with pytest.raises(ConfigError, match="one of weight, local, moments, got 'mean'"):
        pb.predict(model, guide, x, estimator="mean")
    with pytest.raises(ConfigError, match="at least 1, got 0 and 500"):
        pb.predict(model, guide, x, draws=0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    noisy = pb.BayesianModel(net, ARDNoise(), data_size=10, groups=pb.channel_groups(net, x[:2]))
    with pytest.raises(ConfigError, match=r"site '0.noise' is another kind of latent: use estimator='weight'"):
        pb.predict(noisy, pb.guides.MeanField(noisy), x, estimator="moments")
