"""The spike-and-slab guide: KL by parts, both roads, cutting, and exactness on models small enough to enumerate."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrobnn.channels import PruningPlan, channel_groups
from pyrobnn.errors import ConfigError
from pyrobnn.guides.spike_slab import SpikeSlabGuide
from pyrobnn.inference.elbo import ELBO
from pyrobnn.likelihoods import Gaussian
from pyrobnn.model import BayesianModel
from pyrobnn.priors.noise import ARDNoise
from pyrobnn.priors.spike_slab import EdgeSpikeSlab, SpikeSlab
from pyrobnn.summary.summarize import summarize


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


X = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def model_with(prior) -> BayesianModel:
    module = net()
    return BayesianModel(module, prior, data_size=8, groups=channel_groups(module, X[:2]))


PRIORS = [SpikeSlab(0.1), SpikeSlab(0.1, slab="gl"), SpikeSlab(0.1, slab="ghs"), EdgeSpikeSlab(0.1)]


@pytest.mark.parametrize("prior", PRIORS)
def test_start_and_closed_forms(prior) -> None:
    torch.manual_seed(0)
    model = model_with(prior)
    guide = SpikeSlabGuide(model)
    parts = ELBO().parts(model, guide, X, Y)
    assert parts.closed_form == set(model.sites())
    (parts.nll + sum(parts.kl.values())).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in guide.parameters())
    moments = guide.moments()
    mean, sd = moments["2.weight"]
    assert torch.equal(mean, net()[2].weight)
    assert torch.allclose(sd, torch.tensor(math.log1p(math.exp(-6.0))))
    gates = [name for name in moments if name.endswith(".gate")]
    for name in gates:
        assert torch.allclose(moments[name][0], torch.tensor(0.99))
        assert torch.allclose(moments[name][1], torch.tensor(0.99 * 0.01).sqrt(), atol=1e-4)


def test_slab_kl_is_weighted_by_the_inclusion_of_the_produced_channel() -> None:
    model = model_with(SpikeSlab(0.1, sigma0=0.7))
    guide = SpikeSlabGuide(model)
    with torch.no_grad():
        guide.theta["0|gate"].copy_(torch.tensor([-2.0, 0.0, 1.0, 3.0]))
        guide.theta["2|gate"].copy_(torch.linspace(-3, 3, 6))
    kl = ELBO().parts(model, guide, X, Y).kl
    inclusion, moments = guide.inclusion(), guide.moments()
    p = dist.Normal(0.0, 0.7)
    for name, weight in (("0.weight", inclusion["0"]), ("2.weight", inclusion["2"]), ("5.weight", torch.ones(3))):
        full = kl_divergence(dist.Normal(*moments[name]), p).flatten(1).sum(1)
        assert torch.allclose(kl[name], (weight * full).sum(), rtol=1e-5)
    gate = kl_divergence(dist.Bernoulli(inclusion["0"]), dist.Bernoulli(0.1)).sum()
    assert torch.allclose(kl["0.gate"], gate, rtol=1e-4)


@pytest.mark.parametrize("prior", PRIORS)
def test_stock_trace_elbo_has_the_same_expectation(prior) -> None:
    """log q − log p of stock Pyro, averaged over draws, is the KL that the closed forms give."""
    model = model_with(prior)
    guide = SpikeSlabGuide(model, init_inclusion=0.6, init_rho=-1.0)
    torch.manual_seed(0)
    with torch.no_grad():
        sampled, closed = [], []
        for _ in range(250):
            draw = pyro.poutine.trace(guide).get_trace(X, Y)
            replayed = pyro.poutine.trace(pyro.poutine.replay(model.values, trace=draw)).get_trace()
            sampled.append(float(draw.log_prob_sum() - replayed.log_prob_sum()))
        for _ in range(12):  # still random: some terms are conditional on drawn scales
            closed.append(float(sum(ELBO().parts(model, guide, X, Y).kl.values())))
    draws = torch.tensor(sampled)
    error = draws.std() / math.sqrt(len(draws)) + torch.tensor(closed).std() / math.sqrt(12)
    assert abs(draws.mean() - torch.tensor(closed).mean()) < 4 * error + 1e-3 * abs(draws.mean())


def test_the_svi_road_trains() -> None:
    pyro.clear_param_store()
    model = model_with(SpikeSlab(0.1, slab="ghs"))
    guide = SpikeSlabGuide(model)
    before = guide.theta["0|gate"].detach().clone()
    with pyro.validation_enabled(True):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        losses = [svi.step(X, Y) for _ in range(3)]
    pyro.clear_param_store()
    assert all(math.isfinite(loss) for loss in losses)
    assert not torch.equal(guide.theta["0|gate"], before)


@pytest.mark.parametrize("prior", PRIORS)
def test_shrink_cuts_everything_and_goes_on(prior) -> None:
    model = model_with(prior)
    guide = SpikeSlabGuide(model)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.uniform_(-1, 1)
    plan = PruningPlan(keep={"0": [1, 3], "2": [0, 2, 5]}, channels={"0": 4, "2": 6})
    small = guide.shrink(model.groups, plan)
    kept = guide.moments()["2.weight"][0][[0, 2, 5]][:, [1, 3]]
    assert torch.equal(small.moments()["2.weight"][0], kept)
    torch.manual_seed(0)
    draws = small()
    assert draws["0.weight"].shape == (2, 1, 3, 3) and draws["5.weight"].shape == (3, 12)
    if isinstance(prior, SpikeSlab):
        assert torch.equal(small.inclusion()["2"], guide.inclusion()["2"][[0, 2, 5]])
        q = pyro.poutine.trace(small).get_trace().nodes["2.weight"]["fn"].base_dist
        assert torch.allclose(q.inclusion[:, 0, 0, 0], small.inclusion()["2"])
    assert guide.theta and guide().keys() == draws.keys()  # the original still works


def test_edge_variant_reports_zeros() -> None:
    model = model_with(EdgeSpikeSlab(0.1))
    guide = SpikeSlabGuide(model)
    assert set(guide.inclusion()) == {"0", "2"}
    with torch.no_grad():
        guide.theta["2|weight|gate"].view(-1)[:100] = -1.0
    assert guide.zeros() == {"0.weight": (0, 36), "2.weight": (100, 216), "5.weight": (0, 72)}
    assert guide.edge_inclusion()["2.weight"].shape == (6, 4, 3, 3)


def test_temperature_is_read_at_every_draw() -> None:
    guide = SpikeSlabGuide(model_with(SpikeSlab(0.1)), gradient="straight-through")
    guide.temperature = 0.1
    q = pyro.poutine.trace(guide).get_trace().nodes["0.gate"]["fn"].base_dist
    assert q.temperature == 0.1 and q.gradient == "straight-through"


@pytest.mark.parametrize(
    "settings",
    [{"init_inclusion": 1.0}, {"init_scale": 0.0}, {"gradient": "none"}, {"temperature": -1.0}],
)
def test_settings_are_checked(settings) -> None:
    with pytest.raises(ConfigError):
        SpikeSlabGuide(model_with(SpikeSlab(0.1)), **settings)


def test_other_priors_are_refused() -> None:
    with pytest.raises(ConfigError, match="ARD"):
        SpikeSlabGuide(model_with(ARDNoise()))
    with pytest.raises(ConfigError, match="no gate"):
        SpikeSlabGuide(BayesianModel(net(), None, data_size=8))


# Exactness: eight gates over fixed weights, a Gaussian likelihood, every state enumerated.

K, N, CHANCE, NOISE = 8, 40, 0.3, 1.0


def small_problem() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """Net, inputs, targets, and the contribution of each hidden unit to the output, `[N, K]`."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(3, K), nn.ReLU(), nn.Linear(K, 1))
    with torch.no_grad():
        module[2].weight.copy_(torch.tensor([[1.5, -1.2, 0.5, 0.45, -0.4, 0.35, 0.3, 0.05]]))
    x = torch.randn(N, 3)
    features = (module[1](module[0](x)) * module[2].weight).detach()
    truth = torch.tensor([1.0, 1, 1, 0, 0, 1, 0, 0])
    y = features @ truth + module[2].bias.detach() + NOISE * torch.randn(N)
    return module, x, y, features


def mean_field_optimum(states: Tensor, log_joint: Tensor) -> Tensor:
    """Best independent gates, by coordinate ascent on the ELBO summed over all states."""
    best, best_elbo = torch.empty(0), -math.inf
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        gamma = torch.rand(K, dtype=torch.float64, generator=generator)
        for _ in range(200):
            for j in range(K):
                weights = torch.where(states > 0, gamma, 1 - gamma)
                weights[:, j] = 1.0
                gain = weights.prod(1) * log_joint
                gamma[j] = torch.sigmoid(gain[states[:, j] > 0].sum() - gain[states[:, j] == 0].sum())
        q = torch.where(states > 0, gamma, 1 - gamma).prod(1)
        elbo = float((q * log_joint).sum() - torch.xlogy(q, q).sum())
        if elbo > best_elbo:
            best, best_elbo = gamma, elbo
    return best


def fitted_inclusion(guide: SpikeSlabGuide, site: str, model, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Fit with 64 particles in a plate; average θ over the second half of a falling learning rate."""
    particles = pyro.plate("particles", 64, dim=-2)
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.1)
    mean = torch.zeros_like(guide.theta[site])
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimiser.zero_grad()
        ELBO().differentiable_loss(particles(model), particles(guide), x, y).backward()
        optimiser.step()
        if step >= steps // 2:
            mean += guide.theta[site].detach() / (steps - steps // 2)
    return mean.sigmoid().double()


def test_gates_against_enumeration() -> None:
    module, x, y, features = small_problem()
    bias = module[2].bias.detach()
    model = BayesianModel(
        module,
        SpikeSlab(CHANCE, select=None),
        data_size=N,
        groups=channel_groups(module, x[:2]),
        likelihood=Gaussian(NOISE),
    )
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=K)))
    with torch.no_grad():
        traces = [
            pyro.poutine.trace(pyro.condition(model, data={"0.gate": z})).get_trace(x, y[:, None]) for z in states
        ]
        log_joint = torch.stack([trace.log_prob_sum() for trace in traces]).double()
    states = states.double()

    # Pyro's own enumeration of the same model, one scalar site per gate.
    @config_enumerate
    def enumerated(x: Tensor, y: Tensor) -> None:
        gates = [pyro.sample(f"z{j}", dist.Bernoulli(CHANCE)) for j in range(K)]
        mean = sum(gate * features[:, j] for j, gate in enumerate(gates)) + bias
        with pyro.plate("data", N, dim=-1):
            pyro.sample("obs", dist.Normal(mean, NOISE), obs=y)

    def empty(x: Tensor, y: Tensor) -> None:
        pass

    oracle = TraceEnum_ELBO(max_plate_nesting=1)
    evidence = torch.logsumexp(log_joint, 0)
    assert -oracle.loss(enumerated, empty, x, y) == pytest.approx(evidence.item(), abs=1e-3)
    marginals = oracle.compute_marginals(enumerated, empty, x, y)
    exact = torch.tensor([float(marginals[f"z{j}"].probs) for j in range(K)], dtype=torch.float64)
    assert torch.allclose(exact, (log_joint - evidence).exp() @ states, atol=1e-4)

    # The same likelihood with room for particles on the left.
    def batched(x: Tensor, y: Tensor) -> None:
        gates = pyro.sample("0.gate", dist.Bernoulli(torch.tensor(CHANCE)).expand([K]).to_event(1))
        with pyro.plate("data", N, dim=-1):
            pyro.sample("obs", dist.Normal((gates * features).sum(-1) + bias, NOISE), obs=y)

    optimum = mean_field_optimum(states, log_joint)
    torch.manual_seed(0)
    fitted = fitted_inclusion(SpikeSlabGuide(model, init_inclusion=0.5), "0|gate", batched, x, y, steps=800)
    error, gap = (fitted - optimum).abs().max().item(), (optimum - exact).abs().max().item()
    print(f"guide to mean-field optimum {error:.4f}; mean-field optimum to exact marginals {gap:.4f}")
    assert error < 0.02, (fitted, optimum)
    assert (fitted - exact).abs().max() < 0.02 + gap
    assert torch.equal(fitted > 0.5, exact > 0.5)


def test_gate_and_slab_together_are_exact_where_mean_field_is() -> None:
    """Linear-Gaussian with orthogonal inputs: the posterior factorises over (z_j, w_j), as the guide does.

    With the slab integrated out, the projection s_j of the data on input j is N(0, 1 + z_j σ₀²): TraceEnum
    gives the exact inclusion, and conjugacy the exact slab posterior. This is what pins the γ-weighted KL.
    """
    sigma0, chance = 2.0, 0.3
    s = torch.tensor([0.2, 1.0, 1.5, 2.0, 2.3, 2.7, 3.2, 5.0])

    @config_enumerate
    def integrated(s: Tensor) -> None:
        with pyro.plate("gates", K):
            z = pyro.sample("z", dist.Bernoulli(chance))
            pyro.sample("s", dist.Normal(0.0, (1 + z * sigma0**2).sqrt()), obs=s)

    oracle = TraceEnum_ELBO(max_plate_nesting=1)
    exact = oracle.compute_marginals(integrated, lambda s: None, s)["z"].probs.double()

    module = nn.Linear(K, 1, bias=False)
    model = BayesianModel(module, EdgeSpikeSlab(chance, sigma0), data_size=K, likelihood=Gaussian(1.0))
    guide = SpikeSlabGuide(model, init_inclusion=0.5, init_rho=0.0)
    with torch.no_grad():
        guide.mu["weight"].copy_(s)

    def batched(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("weight", dist.Normal(0.0, sigma0).expand([1, K]).to_event(2))
        z = pyro.sample("weight.gate", dist.Bernoulli(torch.tensor(chance)).expand([1, K]).to_event(2))
        with pyro.plate("data", K, dim=-1):  # inputs are the unit vectors
            pyro.sample("obs", dist.Normal((z * w).squeeze(-2).squeeze(-2), 1.0), obs=y)

    torch.manual_seed(0)
    fitted = fitted_inclusion(guide, "weight|gate", batched, torch.eye(K), s, steps=800)[0]
    print(f"guide to exact marginals {(fitted - exact).abs().max():.4f}")
    assert (fitted - exact).abs().max() < 0.02, (fitted, exact)
    mean, sd = guide.moments()["weight"]
    shrink = sigma0**2 / (1 + sigma0**2)
    included = exact > 0.2  # rarely included slabs get little gradient
    assert torch.allclose(mean[0][included], shrink * s[included], atol=0.08)
    assert torch.allclose(sd[0][included], torch.tensor(math.sqrt(shrink)), atol=0.05)


# What the cut and the optimiser read


def test_edges_make_channels() -> None:
    """A channel is in use while any weight that produces it is: by Monte Carlo over one filter's gates."""
    model = model_with(EdgeSpikeSlab(0.1))
    guide = SpikeSlabGuide(model)
    with torch.no_grad():
        guide.theta["0|weight|gate"].copy_(torch.randn(4, 1, 3, 3) - 2)
    off = 1 - guide.edge_inclusion()["0.weight"][2].flatten().double()
    draws = (torch.rand(200_000, 9, dtype=torch.float64) >= off).any(-1).double().mean()
    assert float(guide.inclusion()["0"][2]) == pytest.approx(float(draws), abs=0.005)
    assert float(guide.inclusion()["0"][2]) == pytest.approx(1 - float(off.prod()), abs=1e-5)
    nats = guide.shares()["0"]
    assert guide.nats() == {}
    assert float(nats.sum()) == pytest.approx(1.0)
    rows = -(1 - guide.inclusion()["0"].double()).log()
    assert torch.allclose(nats.double(), rows / rows.sum(), atol=1e-4)
    odds = guide.weight_odds()["0.weight"]
    assert torch.equal(odds > 0, guide.edge_inclusion()["0.weight"] > 0.5)


def test_nats_of_gates_are_not_clipped() -> None:
    guide = SpikeSlabGuide(model_with(SpikeSlab(0.1)))
    with torch.no_grad():
        guide.theta["0|gate"].copy_(torch.tensor([-30.0, 0.0, 30.0, 40.0]))
    assert torch.allclose(guide.nats()["0"], torch.tensor([0.0, math.log(2), 30.0, 40.0]))
    summary = summarize(model_with(SpikeSlab(0.1)), guide).channels["0"]
    assert torch.allclose(summary.nats, guide.nats()["0"]) and summary.statistic == "inclusion"


def test_learning_rates_by_part() -> None:
    guide = SpikeSlabGuide(model_with(SpikeSlab(0.1, slab="gl")), gate_lr=20.0, scale_lr=5.0, init_rho=None)
    rates = {name.partition(".")[0]: guide.lr_factor(name) for name, _ in guide.named_parameters()}
    assert rates == {"theta": 20.0, "mu": 1.0, "rho": 5.0, "log_loc": 5.0, "log_scale": 5.0}
    for name, weight in net().named_parameters():
        if weight.dim() > 1:  # a tenth of the tensor's root mean square
            assert torch.allclose(guide.moments()[name][1], 0.1 * weight.square().mean().sqrt())
    with pytest.raises(ConfigError, match="factors above 0"):
        SpikeSlabGuide(model_with(SpikeSlab(0.1)), gate_lr=0.0)
