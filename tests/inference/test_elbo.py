"""The ELBO against quadrature, Pyro's Trace_ELBO draw by draw, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor, nn

from pyrobnn.errors import ConfigError, NumericalError
from pyrobnn.inference.elbo import ELBO
from pyrobnn.likelihoods import Gaussian as GaussianNoise
from pyrobnn.model import BayesianModel
from pyrobnn.priors.gaussian import Gaussian

LOC, SCALE = 1.0, 0.25  # of u = log z in the guide


def gamma_model() -> None:
    z = pyro.sample("z", dist.Gamma(3.0, 1.0))
    pyro.sample("obs", dist.Normal(z, 1.0), obs=torch.tensor(2.0))


def gamma_guide() -> AutoNormal:
    start = init_to_value(values={"z": torch.tensor(math.exp(LOC))})
    guide = AutoNormal(gamma_model, init_loc_fn=start, init_scale=SCALE)
    guide()
    return guide


def gamma_loss_by_quadrature() -> float:
    """-ELBO by Gauss-Hermite over u: log q(z) = log N(u) - u."""
    x, w = np.polynomial.hermite_e.hermegauss(80)
    u, w = LOC + SCALE * x, w / w.sum()
    z = np.exp(u)
    log_q = -0.5 * x**2 - math.log(SCALE) - 0.5 * math.log(2 * math.pi) - u
    log_prior = 2 * np.log(z) - z - math.log(2.0)
    log_lik = -0.5 * (2.0 - z) ** 2 - 0.5 * math.log(2 * math.pi)
    return float((w * (log_q - log_prior - log_lik)).sum())


def many(elbo: Callable[[], Any], model: Any, guide: Any, draws: int) -> Tensor:
    losses = []
    for seed in range(draws):
        pyro.set_rng_seed(seed)
        losses.append(float(elbo().loss(model, guide)))
    return torch.tensor(losses, dtype=torch.float64)


def test_stock_mean_field_elbo_is_off_by_the_jacobian_and_ours_is_not() -> None:
    guide, truth = gamma_guide(), gamma_loss_by_quadrature()
    ours = many(ELBO, gamma_model, guide, 600)
    stock = many(TraceMeanField_ELBO, gamma_model, guide, 600)
    trace = many(Trace_ELBO, gamma_model, guide, 600)
    error = ours.std() / math.sqrt(len(ours))
    assert error < 0.1
    assert abs(ours.mean() - truth) < 4 * error
    assert torch.allclose(ours, trace, atol=1e-5)  # the same numbers at the same draws
    gap = stock - ours  # u at each draw: the lost log-Jacobian
    assert abs(gap.mean() - LOC) < 4 * SCALE / math.sqrt(600)
    assert abs(stock.mean() - truth) > 6 * error


def mixed_model(y: Tensor | None = None) -> None:
    """Real, positive, bounded and plated sites."""
    w = pyro.sample("w", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("units", 4):
        b = pyro.sample("b", dist.Normal(p, s))
        with pyro.poutine.scale(scale=2.5):
            pyro.sample("obs", dist.Normal(b + w.sum(), 1.0), obs=torch.arange(4.0))


@pytest.mark.parametrize(
    "family",
    [
        AutoNormal,
        AutoDiagonalNormal,
        AutoMultivariateNormal,
        AutoLowRankMultivariateNormal,
        AutoDelta,
        AutoLaplaceApproximation,
    ],
)
def test_agrees_with_trace_elbo_for_every_autoguide(family: Any) -> None:
    guide = family(mixed_model)
    guide()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    draws = 300 if family is AutoNormal else 20
    ours, trace = many(ELBO, mixed_model, guide, draws), many(Trace_ELBO, mixed_model, guide, draws)
    if family is AutoNormal:  # `w` in closed form: equal in expectation, with less variance
        parts = ELBO().parts(mixed_model, guide)
        assert parts.closed_form == {"w", "b"}
        difference = ours - trace
        assert difference.std() > 0
        assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(draws)
    else:
        assert torch.allclose(ours, trace, rtol=1e-5)


def test_a_list_of_guides() -> None:
    guide = AutoGuideList(mixed_model)
    guide.append(AutoDelta(pyro.poutine.block(mixed_model, expose=["s", "p"])))
    guide.append(AutoNormal(pyro.poutine.block(mixed_model, expose=["w", "b"])))
    guide()
    parts = ELBO().parts(mixed_model, guide)
    assert set(parts.kl) == {"w", "s", "p", "b"} and parts.closed_form == {"w", "b"}


def gaussian_kl(loc: Tensor, scale: Tensor, prior: float) -> Tensor:
    return (torch.log(prior / scale) + (scale**2 + loc**2) / (2 * prior**2) - 0.5).sum()


def test_closed_form_nll_and_kl_apart() -> None:
    guide = AutoNormal(mixed_model)
    guide()
    parts = ELBO(num_particles=3).parts(mixed_model, guide)
    loc, scale = guide.locs.w.detach(), guide.scales.w.detach()
    assert torch.allclose(parts.kl["w"], gaussian_kl(loc, scale, 2.0))
    assert set(parts.kl) == {"w", "s", "p", "b"}
    pyro.set_rng_seed(5)
    trace = pyro.poutine.trace(pyro.poutine.replay(mixed_model, pyro.poutine.trace(guide).get_trace())).get_trace()
    trace.compute_log_prob()
    pyro.set_rng_seed(5)
    assert torch.allclose(ELBO().parts(mixed_model, guide).nll, -trace.nodes["obs"]["log_prob_sum"])


def test_weights_on_the_kl() -> None:
    guide = AutoNormal(mixed_model)
    guide()

    def parts(**options: Any) -> Any:
        pyro.set_rng_seed(1)
        return ELBO(**options).parts(mixed_model, guide)

    plain = parts()
    price = torch.tensor([1.0, 0.0, 3.0])
    weighted = parts(site_weights={"w": price, "s": 0.5})
    loc, scale = guide.locs.w.detach(), guide.scales.w.detach()
    wanted = sum(price[k] * gaussian_kl(loc[k], scale[k], 2.0) for k in range(3))
    assert torch.allclose(weighted.kl["w"], wanted)
    assert torch.allclose(weighted.kl["s"], 0.5 * plain.kl["s"])
    assert torch.equal(weighted.kl["p"], plain.kl["p"]) and torch.equal(weighted.nll, plain.nll)
    pyro.set_rng_seed(1)
    cold = ELBO(kl_weight=0.25).loss(mixed_model, guide)
    assert cold == pytest.approx(float((plain.nll + 0.25 * sum(plain.kl.values())).detach()), rel=1e-5)
    with pytest.raises(ConfigError, match="'s'.*closed-form"):
        parts(site_weights={"s": torch.ones(1)})


def test_gradient_is_that_of_trace_elbo_in_expectation() -> None:
    """Closed-form and sampled terms alike: the mean over draws of the difference is 0 within its error."""
    guide = AutoNormal(mixed_model)
    guide()
    differences = []
    for seed in range(200):
        rows = []
        for elbo in (ELBO(), Trace_ELBO()):
            pyro.set_rng_seed(seed)
            guide.zero_grad()
            elbo.differentiable_loss(mixed_model, guide).backward()
            rows.append(torch.cat([p.grad.flatten() for p in guide.parameters()]))
        differences.append(rows[0] - rows[1])
    difference = torch.stack(differences)
    error = difference.std(0) / math.sqrt(len(difference))
    assert bool((difference.mean(0).abs() <= 4.5 * error + 1e-5).all())


def regression(n: int = 24) -> tuple[BayesianModel, Tensor, Tensor]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))
    return (
        BayesianModel(net, Gaussian(1.0), data_size=n, likelihood=GaussianNoise(0.5)),
        torch.randn(n, 2),
        torch.randn(n),
    )


@pytest.mark.parametrize("batch", [4, 8, 12])
def test_loss_does_not_depend_on_the_batch_size(batch: int) -> None:
    model, x, y = regression()
    guide = AutoDelta(model)
    guide(x, y)
    whole = ELBO().loss(model, guide, x, y)
    pieces = [ELBO().loss(model, guide, x[k : k + batch], y[k : k + batch]) for k in range(0, len(x), batch)]
    assert sum(pieces) / len(pieces) == pytest.approx(whole, rel=1e-5)


def test_svi_takes_it_and_returns_the_loss() -> None:
    model, x, y = regression()
    guide = AutoNormal(model, init_scale=0.05)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=ELBO())
    losses = [svi.step(x, y) for _ in range(80)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert isinstance(svi.evaluate_loss(x, y), float)


@pytest.mark.parametrize(("site", "value"), [("w", math.nan), ("w", math.inf)])
def test_a_value_that_is_not_finite_names_its_site(site: str, value: float) -> None:
    guide = AutoNormal(mixed_model)
    guide()
    with torch.no_grad():
        guide.locs.w[1] = value
    with pyro.validation_enabled(False), pytest.raises(NumericalError, match=f"site '{site}'"):
        ELBO().loss(mixed_model, guide)


def test_a_likelihood_that_is_not_finite_says_so() -> None:
    model, x, y = regression()
    guide = AutoDelta(model)
    guide(x, y)
    with pyro.validation_enabled(False), pytest.raises(NumericalError, match="'obs'"):
        ELBO().loss(model, guide, x * math.inf, y)


def test_a_guide_site_without_rsample_is_refused() -> None:
    def model() -> None:
        pyro.sample("k", dist.Bernoulli(0.3))

    def guide() -> None:
        pyro.sample("k", dist.Poisson(torch.tensor(0.4)))

    with pytest.raises(ConfigError, match=r"'k'.*Poisson.*reparameterised"):
        ELBO().loss(model, guide)

    def closed_form_guide() -> None:  # its KL is exact, but the likelihood's gradient would be lost
        pyro.sample("k", dist.Bernoulli(torch.tensor(0.4)))

    with pytest.raises(ConfigError, match=r"'k'.*Bernoulli"):
        ELBO().loss(model, closed_form_guide)


def test_unknown_estimator() -> None:
    with pytest.raises(ConfigError, match="'weight', 'example', 'local' or 'moments', got 'flipout'"):
        ELBO(estimator="flipout")


def test_handlers_and_subclasses_reach_the_traces() -> None:
    """What stock losses offer through Pyro's hooks holds here: poutine handlers, a subclass of its own, validation."""
    model, x, y = regression()
    guide = AutoDelta(model)
    guide(x, y)
    plain = ELBO().parts(model, guide, x, y)
    scaled = ELBO().parts(pyro.poutine.scale(model, 0.5), pyro.poutine.scale(guide, 0.5), x, y)
    assert torch.allclose(scaled.nll, 0.5 * plain.nll)
    assert all(torch.allclose(scaled.kl[name], 0.5 * value) for name, value in plain.kl.items())

    class Watched(ELBO):
        seen: list[set[str]]

        def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
            traces = super()._get_trace(model, guide, args, kwargs)
            self.seen = [set(trace.stochastic_nodes) for trace in traces]
            return traces

    watched = Watched()
    watched.loss(model, guide, x, y)
    assert watched.seen[1] == set(plain.kl) and watched.seen[0] == set(plain.kl)

    def forgetful() -> None:
        pyro.sample("w", dist.Delta(torch.zeros(3), event_dim=1))

    with pyro.validation_enabled(True), pytest.warns(UserWarning, match="in model but not guide"):
        ELBO().loss(mixed_model, forgetful)


def test_particles_at_once_where_the_model_is_vectorised() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("obs", dist.Normal(z, 1.0), obs=torch.arange(3.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.tensor(0.5), 0.3))

    wide = ELBO(num_particles=20000, vectorize_particles=True, max_plate_nesting=1).loss(model, guide)
    kl = 0.5 * (0.3**2 + 0.5**2 - 1) - math.log(0.3)
    nll = sum(0.5 * ((y - 0.5) ** 2 + 0.3**2) + 0.5 * math.log(2 * math.pi) for y in range(3))
    assert wide == pytest.approx(nll + kl, abs=0.02)


def test_a_guide_that_is_a_handler() -> None:
    guide = AutoNormalMessenger(mixed_model)
    guide()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1)
    ours, stock = many(ELBO, mixed_model, guide, 200), many(Trace_ELBO, mixed_model, guide, 200)
    difference = ours - stock
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(200) + 1e-5
