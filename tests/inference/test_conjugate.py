"""Bayesian linear regression through model, guide, ELBO and loop: the exact posterior comes out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.data import Data, Split
from pyrobnn.errors import DataError

N, D, NOISE, PRIOR = 64, 4, 0.7, 1.5


def orthogonal_design() -> tuple[Tensor, Tensor]:
    torch.manual_seed(11)
    q, _ = torch.linalg.qr(torch.randn(N, D))
    x = q * torch.tensor([2.0, 4.0, 6.0, 9.0])  # XᵀX diagonal, so the mean-field family holds the posterior
    return x, x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + NOISE * torch.randn(N)


def as_data(x: Tensor, y: Tensor) -> Data:
    split = Split(x[:, :, None, None], y, (0.0,) * D, (1.0,) * D)
    return Data("regression", split, split.__class__(x[:0, :, None, None], y[:0], (0.0,) * D, (1.0,) * D), split, 0,
                (0.0,) * D, (1.0,) * D, None, "0")  # fmt: skip


@pytest.mark.parametrize(("estimator", "batch"), [("weight", N), ("local", N), ("local", N // 2)])
def test_mean_field_finds_the_exact_posterior(estimator: str, batch: int) -> None:
    x, y = orthogonal_design()
    precision = x.square().sum(0) / NOISE**2 + 1 / PRIOR**2
    mean, sd = (x.T @ y / NOISE**2) / precision, precision.rsqrt()
    model = pb.BayesianModel(
        nn.Sequential(nn.Flatten(), nn.Linear(D, 1, bias=False), nn.Flatten(0)),
        pb.priors.Gaussian(PRIOR),
        data_size=N,
        likelihood=pb.likelihoods.Gaussian(NOISE),
    )
    guide = pb.guides.MeanField(model)
    epochs = 700 * batch // N
    pb.fit(
        model, guide, as_data(x, y), epochs=epochs, batch_size=batch, lr=0.05, clip=None, estimator=estimator,
        validate=False, progress=False,
    )  # fmt: skip
    found, scale = guide.moments()["1.weight"]
    # Gradients are draws: a small part of a posterior deviation stays.
    assert bool(((found[0] - mean).abs() < 0.12 * sd).all())
    assert torch.allclose(scale[0], sd, rtol=0.1)
    # A guide at the exact posterior: the loss is the negative log evidence, at every draw on average.
    with torch.no_grad():
        guide.loc["1|weight"].copy_(mean[None])
        guide.log_scale["1|weight"].copy_(sd.log()[None])
    losses = torch.tensor([pb.ELBO().loss(model, guide, x, y) for _ in range(300)])
    cov = NOISE**2 * torch.eye(N) + PRIOR**2 * x @ x.T
    evidence = torch.distributions.MultivariateNormal(torch.zeros(N), cov).log_prob(y)
    assert abs(losses.mean() + evidence) < 4 * losses.std() / math.sqrt(300) + 1e-2


def test_targets_that_would_broadcast_are_refused() -> None:
    model = pb.BayesianModel(nn.Linear(3, 1), data_size=8, likelihood=pb.likelihoods.Gaussian())
    with pytest.raises(DataError, match=r"\(8, 1\).*\(8,\)"):
        model(torch.randn(8, 3), torch.randn(8))
