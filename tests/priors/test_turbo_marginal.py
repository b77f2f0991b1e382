"""The Turbo prior with supports and precisions summed out, against enumeration and quadrature."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.distributions.chains import TwoLevelChain
from pyrobnn.errors import ConfigError
from pyrobnn.priors.turbo import PrecisionPrior, Transitions, Turbo
from pyrobnn.priors.turbo_marginal import ClusteredStudentT

PRIOR = PrecisionPrior(1.5, 0.7, 1.0, 1e-2)
CHAINS = TwoLevelChain(0.2, 0.3, 0.4, 0.25, 2, 3)


def density(value: float, a: float, b: float) -> float:
    """∫ N(w; 0, 1/ρ) Γ(ρ; a, b) dρ by quadrature over log ρ."""

    def integrand(log_rho: float) -> float:
        rho = math.exp(log_rho)
        return stats.norm.pdf(value, scale=rho**-0.5) * stats.gamma.pdf(rho, a, scale=1 / b) * rho

    return integrate.quad(integrand, -25, 25, limit=400, points=[math.log(a / b)])[0]


def by_enumeration(weights: Tensor) -> float:
    flat = weights.flatten().tolist()
    on = [density(w, PRIOR.a, PRIOR.b) for w in flat]
    off = [density(w, PRIOR.a_off, PRIOR.b_off) for w in flat]
    total = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=len(flat)):
        chance = float(CHAINS.log_prob(torch.tensor(bits).reshape(2, 3)).exp())
        total += chance * math.prod(a if bit else b for bit, a, b in zip(bits, on, off, strict=True))
    return math.log(total)


def law() -> ClusteredStudentT:
    return ClusteredStudentT(CHAINS, PRIOR, torch.Size([2, 1, 3]), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("size", [0.05, 0.5, 2.0])
def test_density_is_the_sum_over_all_supports(size: float) -> None:
    weights = size * torch.tensor([[[1.0, -0.3, 0.02]], [[0.0, 0.6, -1.2]]], dtype=torch.float64)
    assert float(law().log_prob(weights)) == pytest.approx(by_enumeration(weights), abs=1e-5)


def test_gradient_by_differences() -> None:
    weights = torch.randn(3, 2, 1, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: law().log_prob(w), (weights,), atol=1e-6)


def test_draws_have_the_density_and_the_support_of_the_chains() -> None:
    """Averages over draws: of an indicator against the hierarchical prior's own draws, and of P(s | w) against P(s)."""
    torch.manual_seed(1)
    draws = law().sample((20_000,))
    chance = law().inclusion(draws).mean(0)
    assert torch.allclose(chance, CHAINS.mean.double().reshape(2, 1, 3), atol=0.012)
    share = float(CHAINS.mean[0, 0])
    wide = share * 2 * stats.t.sf(1.0 / math.sqrt(PRIOR.b / PRIOR.a), 2 * PRIOR.a) + (1 - share) * 2 * stats.t.sf(
        1.0 / math.sqrt(PRIOR.b_off / PRIOR.a_off), 2 * PRIOR.a_off
    )
    assert float((draws.abs() > 1).double().mean()) == pytest.approx(wide, abs=0.005)


def test_one_site_a_tensor_and_the_scale_of_its_weights() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    model = pb.BayesianModel(net, Turbo(Transitions(0.1, 0.2), form="marginal"), data_size=4)
    assert set(model.sites()) == {"0.weight", "2.weight"}
    held = pb.BayesianModel(net, Turbo(Transitions(0.1, 0.2)), data_size=4)
    assert held.prior.squares == model.prior.squares
    pb.guides.MeanField(model)()


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"form must be 'hierarchical' or 'marginal', got 'joint'"):
        Turbo(form="joint")
    with pytest.raises(ConfigError, match=r"crossing chains cannot be summed out.*two-level"):
        Turbo(form="marginal", structure="crossing")
    model = pb.BayesianModel(nn.Linear(2, 3), Turbo(form="marginal"), data_size=4)
    with pytest.raises(ConfigError, match=r"TurboGuide needs.*form='hierarchical'"):
        pb.guides.TurboGuide(model)
