"""Expected log-likelihoods of Gaussian logits."""

from __future__ import annotations

import pyro
import pytest
import torch
import torch.nn.functional as F

from pyrobnn.errors import ConfigError
from pyrobnn.moments import (
    MomentCategorical,
    Moments,
    gaussian_log_likelihood,
    sampled_log_likelihood,
    second_order_log_likelihood,
)

MEAN = torch.tensor([[1.0, -0.5, 0.2], [0.0, 2.0, -1.0]])
VARIANCE = torch.tensor([[0.3, 0.05, 0.2], [0.1, 0.4, 0.02]])
LABELS = torch.tensor([0, 2])


def expected(variance: torch.Tensor, draws: int = 200_000) -> tuple[torch.Tensor, torch.Tensor]:
    """E log softmax_y by Monte Carlo, with its standard error."""
    g = torch.Generator().manual_seed(0)
    logits = MEAN + variance.sqrt() * torch.randn(draws, *MEAN.shape, generator=g)
    values = F.log_softmax(logits, -1)[:, torch.arange(2), LABELS].double()
    return values.mean(0), values.std(0) / draws**0.5


def test_sampled_is_unbiased() -> None:
    torch.manual_seed(1)
    n = 100_000
    values = sampled_log_likelihood(MEAN.repeat(n, 1), VARIANCE.repeat(n, 1), LABELS.repeat(n)).view(n, 2).double()
    mean, error = expected(VARIANCE)
    total = (error.square() + values.var(0) / n).sqrt()
    assert ((values.mean(0) - mean).abs() < 5 * total).all()


def test_sampled_is_reparameterised_and_finite_without_variance() -> None:
    mean, variance = MEAN.clone().requires_grad_(), torch.zeros_like(VARIANCE).requires_grad_()
    g = torch.Generator().manual_seed(0)
    value = sampled_log_likelihood(mean, variance, LABELS, generator=g)
    torch.testing.assert_close(value, F.log_softmax(MEAN, -1).gather(1, LABELS[:, None])[:, 0])
    value.sum().backward()
    assert torch.isfinite(variance.grad).all() and mean.grad.any()


def test_second_order_is_accurate_to_second_order() -> None:
    """The error falls with the square of the variance: 16 times for a quarter of it."""
    errors = []
    for factor in (1.0, 0.25):
        mean, error = expected(VARIANCE * factor)
        gap = (second_order_log_likelihood(MEAN, VARIANCE * factor, LABELS).double() - mean).abs()
        assert (gap < 0.03 * factor**2 + 5 * error).all()
        errors.append(gap)
    deterministic = F.log_softmax(MEAN, -1).gather(1, LABELS[:, None])[:, 0]
    assert ((deterministic - expected(VARIANCE)[0]).abs() > errors[0]).all()


def test_gaussian_equals_the_density_of_the_softmax_output() -> None:
    p = MEAN.softmax(-1)
    jacobian = torch.autograd.functional.jacobian(lambda z: z.softmax(-1), MEAN[0])
    sigma = jacobian @ torch.diag(VARIANCE[0]) @ jacobian.T + 1e-3 * torch.eye(3)
    target = F.one_hot(LABELS, 3)[0].float()
    density = torch.distributions.MultivariateNormal(p[0], sigma).log_prob(target)
    constant = -1.5 * torch.log(torch.tensor(2 * torch.pi))
    value = gaussian_log_likelihood(MEAN, VARIANCE, LABELS)
    torch.testing.assert_close(value[0], density - constant, rtol=1e-4, atol=1e-3)


def test_distribution_observes_moments() -> None:
    logits = Moments(MEAN, VARIANCE)
    for kind, value in [
        ("second_order", second_order_log_likelihood(MEAN, VARIANCE, LABELS)),
        ("gaussian", gaussian_log_likelihood(MEAN, VARIANCE, LABELS)),
    ]:
        torch.testing.assert_close(MomentCategorical(logits, kind).log_prob(LABELS), value)

    def model() -> None:
        with pyro.plate("data", 100, subsample=torch.arange(2)):
            pyro.sample("obs", MomentCategorical(logits, "second_order"), obs=LABELS)

    total = pyro.poutine.trace(model).get_trace().log_prob_sum()
    torch.testing.assert_close(total, 50 * second_order_log_likelihood(MEAN, VARIANCE, LABELS).sum())


def test_distribution_samples_labels() -> None:
    torch.manual_seed(0)
    labels = MomentCategorical(Moments(MEAN, VARIANCE)).sample((20_000,))
    logits = MEAN + VARIANCE.sqrt() * torch.randn(20_000, *MEAN.shape)
    frequency = F.one_hot(labels, 3).float().mean(0)
    torch.testing.assert_close(frequency, logits.softmax(-1).mean(0), rtol=0, atol=0.02)
    assert MomentCategorical(Moments(MEAN, VARIANCE)).expand((5, 2)).sample().shape == (5, 2)


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="expected one of sampled, second_order, gaussian, got 'probit'"):
        MomentCategorical(Moments(MEAN, VARIANCE), "probit")  # type: ignore[arg-type]
