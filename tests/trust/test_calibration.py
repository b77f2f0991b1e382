"""Simulation-based calibration (Talts et al. 2018) of guide and ELBO: parameters drawn from the prior, data from them,
a posterior from the data; the rank of the true parameter among draws of the posterior is uniform.

One network holds many problems side by side, one per output: they share inputs and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pyrobnn as pb

DRAWS = 63


def fitted(
    x: Tensor, y: Tensor, likelihood: Callable[[Tensor], dist.TorchDistribution], estimator: str
) -> pb.guides.MeanField:
    """A mean-field posterior of the weights of a linear layer `[outputs, inputs]` with the prior N(0, 1)."""
    net = nn.Linear(x.shape[1], y.shape[1], bias=False)
    model = pb.BayesianModel(net, pb.priors.Gaussian(scale=1.0), data_size=len(x), likelihood=likelihood)
    guide = pb.guides.MeanField(model, init_scale=0.3)
    loss = pb.ELBO(num_particles=4, estimator=estimator)
    steps = 800
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.03)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss.differentiable_loss(model, guide, x, y).backward()
        optimiser.step()
        decay.step()
    return guide


def ranks(truth: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    draws = loc + scale * torch.randn(DRAWS, *loc.shape)
    return (draws < truth).sum(0).flatten()


def p_uniform(found: Tensor) -> float:
    """p-value of the chi-squared test that ranks 0..DRAWS are equally likely, in 16 bins."""
    counts = torch.histc(found.double(), bins=16, min=-0.5, max=DRAWS + 0.5)
    return float(stats.chisquare(counts.numpy()).pvalue)


@pytest.mark.parametrize("estimator", ["weight", pytest.param("local", marks=pytest.mark.slow)])
def test_conjugate(estimator: str, size: Callable[[int, int], int], count: Callable[..., None]) -> None:
    """Linear regression on orthogonal inputs: the exact posterior factorises, so mean field can be exact."""
    if estimator == "weight" and size(0, 1) == 0:
        pytest.skip("in the long form")
    noise, found = 0.7, []
    for seed in range(size(1, 6)):
        pyro.set_rng_seed(seed)
        x = 2.0 * torch.linalg.qr(torch.randn(8, 4))[0]  # X'X = 4
        truth = torch.randn(400, 4)
        y = x @ truth.T + noise * torch.randn(8, 400)
        ((loc, scale),) = fitted(x, y, pb.likelihoods.Gaussian(noise), estimator).moments().values()
        precision = 1 + 4 / noise**2
        exact = (y.T @ x) / noise**2 / precision
        assert float((loc - exact).abs().mean()) < 0.05 * precision**-0.5
        assert float((scale / precision**-0.5).log().abs().mean()) < 0.05
        found.append(ranks(truth, loc, scale))
    assert p_uniform(torch.cat(found)) > 1e-3
    # The test can fail: a posterior of half the width, and one that is displaced by half of it, are found out.
    assert p_uniform(ranks(truth, loc, 0.5 * scale)) < 1e-6 and p_uniform(ranks(truth, loc + 0.5 * scale, scale)) < 1e-6
    count("calibration, conjugate", ranks=torch.cat(found).numel(), not_uniform=0)


def test_not_conjugate(size: Callable[[int, int], int], count: Callable[..., None]) -> None:
    """Bernoulli trials with a normal prior on the logit: posteriors are near normal, and known by quadrature."""
    trials, found = 40, []

    def likelihood(output: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=output).to_event(1)

    for seed in range(size(1, 6)):
        pyro.set_rng_seed(seed)
        truth = torch.randn(1500, 1)
        x = torch.ones(trials, 1)
        y = torch.bernoulli(truth.T.sigmoid().expand(trials, -1))
        ((loc, scale),) = fitted(x, y, likelihood, "weight").moments().values()
        mean, deviation = by_quadrature(y.sum(0), trials)
        assert float((loc[:, 0] - mean).abs().max()) < 0.15 * float(deviation.min())
        assert float((scale[:, 0] / deviation).log().abs().max()) < 0.15
        found.append(ranks(truth, loc, scale))
    assert p_uniform(torch.cat(found)) > 1e-3
    assert p_uniform(ranks(truth, loc, 0.5 * scale)) < 1e-6
    count("calibration, not conjugate", ranks=torch.cat(found).numel(), not_uniform=0)


def by_quadrature(successes: Tensor, trials: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the exact posterior of each problem."""
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    s = successes.double()[:, None]
    log_density = -0.5 * grid**2 + s * nn.functional.logsigmoid(grid) + (trials - s) * nn.functional.logsigmoid(-grid)
    weights = (log_density - log_density.logsumexp(1, keepdim=True)).exp()
    mean = weights @ grid
    return mean.float(), (weights @ grid**2 - mean**2).sqrt().float()
