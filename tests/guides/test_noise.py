"""Noise guides: starts, KL on the closed-form road, cutting, and a pruning decision on a planted net."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan, channel_groups
from pyrobnn.criteria.evidence import bmrs_n
from pyrobnn.errors import ConfigError
from pyrobnn.guides.noise import NormalNoise, TruncatedLogNormalNoise
from pyrobnn.guides.noise_balance import spike_loss
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.shrink import shrink
from pyrobnn.likelihoods import Categorical
from pyrobnn.model import BayesianModel
from pyrobnn.priors.gaussian import Gaussian
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise, SpikeNoise, TwoSpikeNoise
from pyrobnn.summary.summarize import summarize


def planted() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A net of 6 hidden units of which 2, 3, 4 and 5 do nothing, and data it explains."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 4.0], [1, 1], [1, -1], [-1, 1], [-1, -1]]))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[3.0, -3, 1e-3, -1e-3, 1e-3, 0], [-3.0, 3, 0, 1e-3, 1e-3, -1e-3]]))
        net[2].bias.zero_()
    x = torch.rand(400, 2) * 2 - 0.5
    y = torch.distributions.Categorical(logits=net(x)).sample()
    return net, x, y


def model_with(prior, data_size: int = 400) -> BayesianModel:
    net, x, _ = planted()
    return BayesianModel(net, prior, data_size=data_size, groups=channel_groups(net, x[:2]), likelihood=Categorical())


CASES = [
    (ARDNoise(), NormalNoise),
    (TwoSpikeNoise(), NormalNoise),
    (SpikeNoise(), NormalNoise),
    (LogUniformNoise(), TruncatedLogNormalNoise),
]


@pytest.mark.parametrize(("prior", "family"), CASES)
def test_start_keeps_the_network(prior, family) -> None:
    model = model_with(prior)
    guide = family(model)
    mean, sd = guide.moments()["0.noise"]
    assert mean.shape == sd.shape == (6,)
    assert (mean > 0.9).all() and (mean <= 1.0 + 1e-6).all() and (sd < 0.11).all()
    assert torch.allclose(guide.snr()["0.noise"], mean / sd, rtol=1e-3)
    assert (guide.snr()["0.noise"] > 1).all()


@pytest.mark.parametrize(("prior", "family"), CASES)
def test_both_roads_run_and_the_kl_is_closed_form(prior, family) -> None:
    model, (_, x, y) = model_with(prior), planted()
    guide = family(model)
    parts = ELBO().parts(model, guide, x, y)
    assert parts.closed_form == {"0.noise"}
    (parts.nll + parts.kl["0.noise"]).backward()
    for module in (model, guide):
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    pyro.clear_param_store()
    with pyro.validation_enabled(True):
        loss = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(x, y)
    pyro.clear_param_store()
    assert math.isfinite(loss)


def test_sampled_and_closed_kl_agree_for_the_log_uniform_prior() -> None:
    torch.manual_seed(1)
    guide = TruncatedLogNormalNoise(model_with(LogUniformNoise()), init_loc=-1.0, init_log_scale=0.0)
    q = guide.posterior("0.noise")
    model = model_with(LogUniformNoise())
    p = model.sites()["0.noise"]["fn"].base_dist
    draws = q.sample((200_000,))
    sampled = (q.log_prob(draws) - p.log_prob(draws)).mean(0)
    assert torch.allclose(torch.distributions.kl_divergence(q, p), sampled, atol=0.01)


def test_clipping_is_applied_where_the_parameters_are_used() -> None:
    guide = TruncatedLogNormalNoise(
        model_with(LogUniformNoise()), init_loc=9.0, init_log_scale=-30.0, clip_log_scale=(-7.0, 2.0)
    )
    q = guide.posterior("0.noise")
    assert torch.allclose(q.loc, torch.tensor(5.0)) and torch.allclose(q.scale.log(), torch.tensor(-7.0))


def test_weights_beside_log_uniform_noise_get_normals() -> None:
    model = model_with(LogUniformNoise(weights=Gaussian(1.0)))
    guide = TruncatedLogNormalNoise(model)
    assert set(guide.moments()) == {"0.noise", "0.weight", "2.weight"}
    _, x, y = planted()
    assert ELBO().parts(model, guide, x, y).closed_form == {"0.noise", "0.weight", "2.weight"}
    assert torch.allclose(guide.moments()["0.weight"][0], planted()[0][0].weight)


@pytest.mark.parametrize(("prior", "family"), [*CASES, (LogUniformNoise(weights=Gaussian()), TruncatedLogNormalNoise)])
def test_shrink_slices_the_noise(prior, family) -> None:
    model = model_with(prior)
    guide = family(model)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.uniform_(-1, 0)
    before = guide.moments()
    plan = PruningPlan(keep={"0": [1, 4]}, channels={"0": 6}, score={}, reason={})
    small = guide.shrink(model.groups, plan)
    after = small.moments()
    assert torch.equal(after["0.noise"][0], before["0.noise"][0][[1, 4]])
    assert before["0.noise"][0].shape == (6,)
    if "2.weight" in before:
        assert torch.equal(after["2.weight"][1], before["2.weight"][1][:, [1, 4]])
    draws = small()
    assert draws["0.noise"].shape == (2,)


def fit(model: BayesianModel, guide, tau: tuple[float, float] | None = None) -> None:
    """Fit the guide alone, at fixed weights; τ of a two-spike prior may shrink on the way."""
    _, x, y = planted()
    steps = 250
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.1)
    for step in range(steps):
        if tau is not None:
            model.prior.tau = tau[0] * (tau[1] / tau[0]) ** min(1.0, 1.5 * step / steps)
        optimiser.zero_grad()
        ELBO().differentiable_loss(model, guide, x, y).backward()
        optimiser.step()


@pytest.mark.parametrize("prior", [ARDNoise(), LogUniformNoise()])
def test_idle_units_end_below_snr_one(prior) -> None:
    torch.manual_seed(2)
    model = model_with(prior)
    guide = (TruncatedLogNormalNoise if isinstance(prior, LogUniformNoise) else NormalNoise)(model)
    fit(model, guide)
    snr = guide.snr()["0.noise"]
    assert (snr[:2] > 3).all() and (snr[2:] < 1).all(), snr
    if isinstance(prior, LogUniformNoise):
        q = guide.posterior("0.noise")
        delta = bmrs_n(q.loc, q.scale).detach()
        assert (delta[:2] < 0).all(), delta


def test_two_spike_inclusion_finds_the_idle_units_if_tau_shrinks_on_the_way() -> None:
    torch.manual_seed(3)
    model = model_with(TwoSpikeNoise(pi=0.2, tau=0.1))
    guide = NormalNoise(model)
    fit(model, guide, tau=(1.0, 0.1))
    inclusion = guide.inclusion()["0"]
    assert inclusion.shape == (6,)
    assert (inclusion[:2] > 0.9).all() and (inclusion[2:] < 0.1).all(), inclusion


def test_two_spike_noise_that_starts_at_one_is_trapped_at_a_narrow_tau() -> None:
    torch.manual_seed(3)
    model = model_with(TwoSpikeNoise(pi=0.2, tau=0.1))
    guide = NormalNoise(model)
    fit(model, guide)  # 1/(2τ²) = 50 nats lie between the spikes: what the prior's docstring warns of
    assert (guide.inclusion()["0"] > 0.9).all()


def test_spike_loss_is_what_a_quadratic_likelihood_loses() -> None:
    """Regression y = θ x + noise with its least-squares θ at 1 has the conjugate posterior N(1, s²) under N(1, τ²)."""
    torch.manual_seed(5)
    x, tau, sd = torch.randn(50, dtype=torch.float64), 0.1, 0.7
    rest = torch.randn(50, dtype=torch.float64)
    y = x + rest - x * (rest @ x) / (x @ x)
    s = (tau**-2 + (x @ x) / sd**2) ** -0.5

    def fits(theta: float) -> Tensor:
        return torch.distributions.Normal(theta * x, sd).log_prob(y).sum()

    assert torch.allclose(spike_loss(torch.ones((), dtype=torch.float64), s, tau), fits(1.0) - fits(0.0))
    # Wider than its spike: what such a fit cannot tell from 0, not a claim that the channel is worthless.
    assert float(spike_loss(torch.tensor(1.0), torch.tensor(0.12), 0.1)) == pytest.approx(0.5)


def test_trapped_two_spike_noise_still_tells_idle_units_by_their_nats() -> None:
    torch.manual_seed(3)
    model = model_with(TwoSpikeNoise(pi=0.2, tau=0.1))
    guide = NormalNoise(model)
    fit(model, guide)
    nats = summarize(model, guide).channels["0"].nats
    assert (nats[:2] > 10).all() and (nats[2:] < 1).all(), nats


@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
def test_spike_loss_at_any_kl_weight(kl_weight: float) -> None:
    """A width fitted against a quadratic likelihood of known curvature, by minimising NLL + w KL over it."""
    curvature, tau = 300.0, 0.1
    log_scale = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    prior = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), tau)
    optimiser = torch.optim.LBFGS([log_scale], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        q = torch.distributions.Normal(torch.ones((), dtype=torch.float64), log_scale.exp())
        value = 0.5 * curvature * q.scale.square() + kl_weight * torch.distributions.kl_divergence(q, prior)
        value.backward()
        return value

    optimiser.step(loss)
    found = spike_loss(torch.ones((), dtype=torch.float64), log_scale.detach().exp(), tau, kl_weight)
    assert float(found) == pytest.approx(0.5 * curvature, rel=1e-3)


def test_inclusion_follows_the_width_of_the_spikes() -> None:
    """τ of the moment, in the guide and in what a cut leaves of it, with and without a prior on the weights."""
    for weights in (None, Gaussian(1.0)):
        prior = TwoSpikeNoise(tau=1.0, weights=weights)
        model = model_with(prior)
        guide = NormalNoise(model, init={"0.noise": torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])}, init_scale=0.01)
        wide = guide.inclusion()["0"]
        prior.tau = 0.3
        sharp = guide.inclusion()["0"]
        logit = (torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]) - 0.5) / 0.3**2
        assert torch.allclose(sharp, logit.sigmoid(), atol=1e-4) and not torch.allclose(wide, sharp, atol=0.1)
        small, less = shrink(model, guide, PruningPlan({"0": [0, 3]}, {"0": 6}))
        small.prior.tau = 0.1
        assert torch.allclose(less.inclusion()["0"], (logit[[0, 3]] * 9).sigmoid(), atol=1e-4)


def test_only_two_spike_noise_reports_inclusion() -> None:
    assert NormalNoise(model_with(ARDNoise())).inclusion() == {}
    # What the likelihood loses is read under ARD as well: ½ SNR⁴ / (1 + SNR²) at the start's SNR of 20.
    assert torch.allclose(NormalNoise(model_with(ARDNoise())).nats()["0"], torch.tensor(0.5 * 20**4 / (1 + 20**2)))


def test_a_model_without_log_uniform_sites_is_refused() -> None:
    with pytest.raises(ConfigError, match="LogUniformNoise"):
        TruncatedLogNormalNoise(model_with(ARDNoise()))
    with pytest.raises(ConfigError, match="clip_loc"):
        TruncatedLogNormalNoise(model_with(LogUniformNoise()), clip_loc=(1.0, 0.0))
