"""The hard-concrete gate against the construction of its paper, and its logit against the logistic law."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pyrobnn.distributions import GateLogit, hard_concrete
from pyrobnn.distributions.hard_concrete import HIGH, LOW, OPEN, TEMPERATURE, log_off


def test_logit_is_positive_with_the_given_probability() -> None:
    probs = torch.tensor([1e-4, 0.3, 0.9], dtype=torch.float64)
    law = GateLogit(probs)
    draws = law.sample((200_000,))
    assert torch.allclose((draws > 0).double().mean(0), probs, atol=4e-3)
    value = torch.tensor([-11.0, 0.5, 3.0], dtype=torch.float64)
    expected = stats.logistic.logpdf(value.numpy(), loc=probs.logit().numpy())
    assert torch.allclose(law.log_prob(value), torch.as_tensor(expected))
    assert torch.allclose(draws.var(0), law.variance, rtol=0.03)
    assert isinstance(law.expand((2, 3)), GateLogit)


def test_gate_is_that_of_the_paper() -> None:
    """P(z = 0) and P(z = 1) of eq. 12 with log α = logit π: sigmoid(∓(log α − β log(−γ/ζ)))."""
    pi = torch.tensor(0.4, dtype=torch.float64)
    gates = hard_concrete(GateLogit(pi).sample((400_000,)))
    shut = 1 - stats.logistic.cdf(float(pi.logit()) - TEMPERATURE * math.log(-LOW / HIGH))
    full = stats.logistic.cdf(float(pi.logit()) + TEMPERATURE * math.log(-LOW / HIGH))
    assert float((gates == 0).double().mean()) == pytest.approx(shut, abs=3e-3)
    assert float((gates == 1).double().mean()) == pytest.approx(full, abs=3e-3)
    assert float(hard_concrete(torch.tensor(OPEN))) == 1.0


def test_gate_has_its_slope() -> None:
    logits = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(hard_concrete, (logits,))
    assert torch.allclose(hard_concrete(logits) + hard_concrete(-logits), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize(("loc", "scale"), [(0.5, 2.0), (30.0, 2.0), (-3.0, 1.0)])
def test_chance_of_off(loc: float, scale: float) -> None:
    found = log_off(torch.tensor([loc], dtype=torch.float64), torch.tensor([scale], dtype=torch.float64))
    assert float(found) == pytest.approx(stats.norm.logcdf(-loc / scale))


def test_point_estimate_is_read_as_log_odds() -> None:
    found = log_off(torch.tensor([1.2]), torch.zeros(1))
    assert float(found) == pytest.approx(math.log(1 / (1 + math.exp(1.2))))
