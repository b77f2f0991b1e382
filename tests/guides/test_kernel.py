"""The guide with one variance per kernel: start, KL, cutting, optimiser moments, moments through the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import pyrobnn as pb
from pyrobnn.channels import PruningPlan
from pyrobnn.errors import ConfigError
from pyrobnn.guides.kernel import KernelMeanField
from pyrobnn.guides.local import local_params
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.loop import Loop
from pyrobnn.priors.tensor_normal import TensorNormal


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
    )


def pair(norm: str = "frobenius", scale: float = 0.7) -> tuple[pb.BayesianModel, KernelMeanField]:
    net = small()
    groups = pb.channel_groups(net, torch.randn(2, 1, 4, 4))
    model = pb.BayesianModel(net, TensorNormal(scale, norm=norm), data_size=20, groups=groups)
    guide = KernelMeanField(model, init_scale=0.3)
    with torch.no_grad():
        for parameter in guide.log_scale.values():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model, guide


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 1, 4, 4), torch.randint(3, (5,))


def test_one_scale_per_kernel() -> None:
    net = small()
    model = pb.BayesianModel(net, TensorNormal(1.0), data_size=20)
    guide = KernelMeanField(model, init_scale=0.3)
    assert guide.log_scale["2|weight"].shape == (6, 1, 1, 1) and guide.log_scale["5|weight"].shape == (3, 1)
    mean, sd = guide.moments()["2.weight"]
    assert torch.equal(mean, net[2].weight) and sd.shape == mean.shape
    torch.testing.assert_close(sd, torch.full_like(sd, 0.3 * float(mean.square().mean().sqrt())))
    guide.set_scale("2.weight", mean, torch.arange(1.0, 7.0).view(6, 1, 1, 1).expand(mean.shape))
    torch.testing.assert_close(guide.moments()["2.weight"][1][:, 0, 0, 0], torch.arange(1.0, 7.0))


def test_kl_is_the_sum_over_kernels_of_the_multivariate_one() -> None:
    model, guide = pair()
    parts = ELBO().parts(model, guide, *batch())
    for name, value in parts.kl.items():
        mean, sd = guide.moments()[name]
        taps = mean[0].numel()
        prior = MultivariateNormal(torch.zeros(taps), 0.7**2 * torch.eye(taps))
        wanted = sum(
            kl_divergence(MultivariateNormal(m.flatten(), s.flatten()[0] ** 2 * torch.eye(taps)), prior)
            for m, s in zip(mean, sd, strict=True)
        )
        torch.testing.assert_close(value.detach(), wanted, rtol=1e-4, atol=1e-3)
    assert parts.closed_form == set(parts.kl)


def test_l1_norm_is_the_authors_term_at_unit_scale() -> None:
    model, guide = pair("l1", 1.0)
    parts = ELBO().parts(model, guide, *batch())
    for name, value in parts.kl.items():
        mean, sd = guide.moments()[name]
        taps, variance = mean[0].numel(), sd.flatten(1)[:, 0].square()
        # -1/2 sum_k [K + K log s2 - sum |M| - K s2], as in the released code (with a sum in place of the mean)
        wanted = -0.5 * (taps + taps * variance.log() - mean.abs().flatten(1).sum(1) - taps * variance).sum()
        torch.testing.assert_close(value.detach(), wanted, rtol=1e-4, atol=1e-3)


def test_l1_pulls_small_means_harder() -> None:
    gradients = {}
    for norm in ("frobenius", "l1"):
        model, guide = pair(norm, 1.0)
        sum(ELBO().parts(model, guide, *batch()).kl.values()).backward()  # type: ignore[union-attr]
        gradients[norm] = guide.loc["2|weight"].grad
    mean = small()[2].weight.detach()
    torch.testing.assert_close(gradients["frobenius"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients["l1"], 0.5 * mean.sign(), rtol=1e-4, atol=1e-5)


def test_moments_of_the_elbo_see_one_variance_per_kernel() -> None:
    """The strides that let a convolution take its cheap road survive guide, site and handler."""
    from pyro import poutine

    from pyrobnn.moments import MomentMessenger, Moments

    model, guide = pair()
    trace = poutine.trace(guide).get_trace()
    tensors = poutine.replay(MomentMessenger(trace, mode="moments")(model.values), trace=trace)()
    weight = tensors["2.weight"]
    assert isinstance(weight, Moments) and weight.variance.stride()[1:] == (0, 0, 0)
    torch.testing.assert_close(weight.variance, guide.moments()["2.weight"][1].square())


def test_survivors_keep_their_posterior() -> None:
    model, guide = pair()
    plan = PruningPlan(keep={"0": [0, 2], "2": [1, 4, 5]}, channels={"0": 4, "2": 6}, score={}, reason={})
    small_model, small_guide = pb.shrink(model, guide, plan)
    for part in (0, 1):
        before, after = guide.moments(), small_guide.moments()
        assert torch.equal(after["0.weight"][part], before["0.weight"][part][[0, 2]])
        assert torch.equal(after["2.weight"][part], before["2.weight"][part][[1, 4, 5]][:, [0, 2]])
        columns = [k * 4 + p for k in (1, 4, 5) for p in range(4)]
        assert torch.equal(after["5.weight"][part], before["5.weight"][part][:, columns])
    assert small_guide.log_scale["2|weight"].shape == (3, 1, 1, 1)
    assert small_model.net[2].in_channels == 2


def test_cut_while_training_carries_the_optimiser() -> None:
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    data = pb.load_data("digits")
    groups = pb.channel_groups(net, data.example)
    model = pb.BayesianModel(net, TensorNormal("fan_in"), data_size=len(data.train), groups=groups)
    guide = KernelMeanField(model)
    plan = PruningPlan(keep={"conv1": [1, 3]}, channels={"conv1": 16}, score={}, reason={})
    with local_params(model, guide), torch.random.fork_rng(devices=[]):
        loop = Loop(model, guide, data, FitConfig(epochs=2, max_steps=3, estimator="moments", validate=False))

        def momentum() -> dict[str, torch.Tensor]:
            return {n: loop.optimiser.state[p]["exp_avg"].clone() for n, p in loop.guide.named_parameters()}

        loop.run_epoch(lambda step, loss: None)
        before = momentum()
        loop.cut(plan)
        after = momentum()
        loop.run_epoch(lambda step, loss: None)
    name = "log_scale.conv1|weight"
    assert torch.equal(after[name], before[name][[1, 3]]) and bool(before[name].any())
    assert torch.equal(after["log_scale.conv2|weight"], before["log_scale.conv2|weight"])


def test_bad_norm() -> None:
    with pytest.raises(ConfigError, match="'frobenius' or 'l1', got 'l2'"):
        TensorNormal(norm="l2")
