"""Turbo-VBI: closed-form updates against the exact ELBO, recovery of planted supports, cutting, resuming."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan, channel_groups
from pyrobnn.data import load_data
from pyrobnn.distributions.chains import TwoLevelChain, two_level_messages
from pyrobnn.errors import ConfigError
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.guides.turbo import TurboGuide
from pyrobnn.guides.turbo_factors import HeldFactor, joint_evidence, support_evidence, update_precision
from pyrobnn.inference.callbacks import Callback, FitUpdate, assign
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.fit import fit
from pyrobnn.inference.shrink import shrink
from pyrobnn.inference.turbo_updates import TurboUpdates
from pyrobnn.model import BayesianModel
from pyrobnn.priors.gaussian import Gaussian
from pyrobnn.priors.turbo import PrecisionPrior, Transitions, Turbo

FORMS = ["mean-field", "joint"]
SKEWED = PrecisionPrior(a=1.5, b=1.0, a_off=1.2, b_off=0.05)


def linear_pair(factors: str, precision: PrecisionPrior = SKEWED, shape: tuple[int, int] = (2, 3)) -> Any:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(shape) * torch.tensor([1.0, 0.1, 0.5]).repeat(shape[1])[: shape[1]])
    prior = Turbo(precision=precision, relative=False, transitions=Transitions(0.2, 0.3, 0.25, 0.35))
    model = BayesianModel(net, prior, data_size=20)
    return model, TurboGuide(model, factors=factors, init_scale=0.3)


def kl_parts(model: BayesianModel, guide: TurboGuide) -> dict[str, Tensor]:
    width = guide.loc["0|weight"].shape[1]
    return ELBO().parts(model, guide, torch.zeros(4, width), torch.zeros(4, dtype=torch.long)).kl


def total_kl(model: BayesianModel, guide: TurboGuide) -> float:
    return float(sum(kl_parts(model, guide).values()).detach())


@pytest.mark.parametrize("factors", FORMS)
def test_kl_of_all_sites_is_the_exact_kl(factors: str) -> None:
    """E_q[log q(w, ρ, s) − log p(w, ρ, s)] by enumeration of s and Monte Carlo over ρ and w."""
    model, guide = linear_pair(factors)
    guide.update(inner=1)
    key, prior = "0|weight", guide.precision_prior("0.weight")
    mean, sd = guide.loc[key].detach(), guide.log_scale[key].detach().exp()
    chains = TwoLevelChain(*guide.transitions_of("0.weight").values(), 2, 3)
    supports = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).reshape(-1, 2, 3)
    square = mean.square() + sd.square()
    if factors == "joint":
        evidence = joint_evidence(square, prior)
    else:
        evidence = support_evidence(guide.shape[key], guide.rate[key], prior)
    log_prior = chains.log_prob(supports)
    log_q = (log_prior + (supports * evidence).sum((-1, -2))).log_softmax(0)

    n, total, error = 40_000, 0.0, 0.0
    torch.manual_seed(0)
    for s, lq, lp in zip(supports, log_q, log_prior, strict=True):
        if factors == "joint":
            on = s > 0
            shape = torch.where(on, prior.a, prior.a_off) + 0.5
            rate = torch.where(on, prior.b, prior.b_off) + square / 2
        else:
            shape, rate = guide.shape[key], guide.rate[key]
        q_rho = torch.distributions.Gamma(shape, rate)
        q_w = torch.distributions.Normal(mean, sd)
        rho, w = q_rho.sample((n,)), q_w.sample((n,))
        p_rho = torch.distributions.Gamma(
            torch.where(s > 0, prior.a, prior.a_off), torch.where(s > 0, prior.b, prior.b_off)
        )
        value = (
            q_rho.log_prob(rho)
            + q_w.log_prob(w)
            - p_rho.log_prob(rho)
            - torch.distributions.Normal(0.0, rho.rsqrt()).log_prob(w)
        ).sum((-1, -2))
        total += float(lq.exp() * (lq - lp + value.mean()))
        error += float(lq.exp() * value.std()) / math.sqrt(n)
    assert error < 0.05
    assert total_kl(model, guide) == pytest.approx(total, abs=4 * error)


@pytest.mark.parametrize("factors", FORMS)
def test_updates_are_coordinate_ascent(factors: str) -> None:
    """With (μ, σ) held, exact updates never raise the KL, and end in a fixed point."""
    model, guide = linear_pair(factors, PrecisionPrior(1.0, 1.0, 1.0, 1e-3), (6, 12))
    with torch.no_grad():
        guide.loc["0|weight"].mul_(torch.rand(6, 12) + 0.2)
    values = []
    for _ in range(12):
        change = guide.update(inner=1)
        values.append(total_kl(model, guide))
    assert all(b <= a + 1e-3 for a, b in itertools.pairwise(values)), values
    assert change.change < 1e-3


def test_precision_update_is_the_optimum() -> None:
    """The published q(ρ) has the smallest KL given q(s) and q(w): nudging ã or b̃ raises it."""
    model, guide = linear_pair("mean-field")
    key = "0|weight"
    guide.update(inner=1)
    square = guide._square("0.weight")
    shape, rate = update_precision(guide.support[key], square, guide.precision_prior("0.weight"))

    def at(a: Tensor, b: Tensor) -> float:
        guide.shape[key], guide.rate[key] = a, b
        support_kl = guide.divergence[key][0]
        guide.divergence[key] = torch.stack([support_kl, guide._precision_kl("0.weight", square)])
        return total_kl(model, guide)

    best = at(shape, rate)
    for a, b in ((1.1, 1.0), (0.9, 1.0), (1.0, 1.1), (1.0, 0.9), (1.1, 1.1)):
        assert at(shape * a, rate * b) > best + 1e-3


@pytest.mark.parametrize("estimator", ["weight", "local"])
def test_objective_is_the_weighted_ridge(estimator: str) -> None:
    """The KL's gradient is that of Σ ½[⟨ρ⟩(μ² + σ²) − ln σ²] with ⟨ρ⟩ held."""
    model, guide = linear_pair("joint")
    key = "0|weight"
    y = torch.zeros(4, dtype=torch.long)
    parts = ELBO(estimator=estimator).parts(model, guide, torch.zeros(4, 3), y)
    assert parts.closed_form == {"0.weight", "0.weight.precision", "0.weight.support"}
    got = torch.autograd.grad(sum(parts.kl.values()), [guide.loc[key], guide.log_scale[key]])
    mean, log_sd = (p.detach().clone().requires_grad_() for p in (guide.loc[key], guide.log_scale[key]))
    precision = guide.shape[key] / guide.rate[key]
    loss = 0.5 * (precision * (mean.square() + (2 * log_sd).exp()) - 2 * log_sd).sum()
    for a, b in zip(got, torch.autograd.grad(loss, [mean, log_sd]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_point_phase_is_the_reweighted_ridge_without_noise() -> None:
    model, guide = linear_pair("joint")
    guide.point = True
    guide.update(inner=1)
    key = "0|weight"
    first, second = guide()["0.weight"], guide()["0.weight"]
    assert torch.equal(first, second)
    gradient, rest = torch.autograd.grad(sum(kl_parts(model, guide).values()), [guide.loc[key], guide.log_scale[key]])
    torch.testing.assert_close(gradient, guide.shape[key] / guide.rate[key] * guide.loc[key].detach())
    assert not rest.any()
    assert not guide.moments()["0.weight"][1].any()


def test_both_roads_train_the_same_parameters() -> None:
    model, guide = linear_pair("joint")
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    before = guide.loc["0|weight"].detach().clone()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    pyro.clear_param_store()
    assert math.isfinite(svi.step(x, y))
    assert not torch.equal(guide.loc["0|weight"].detach(), before)
    pyro.clear_param_store()
    draws = pyro.infer.Predictive(model, guide=guide, num_samples=3)(x)
    assert draws["obs"].shape == (3, 8)


def recover(coupled: bool, factors: str, seed: int) -> tuple[float, float]:
    """F1 and relative squared error of a planted support, q(w) in closed form, 110 equations for 256 weights."""
    filters, length, n, noise = 8, 32, 110, 0.1
    chain = (0.08, 0.08, 0.3, 0.3)
    torch.manual_seed(seed)
    support = TwoLevelChain(*chain, filters, length).sample()
    weight = (support * torch.randn(filters, length)).flatten().double()
    x = torch.randn(n, filters * length).double() / math.sqrt(n)
    y = x @ weight + noise * torch.randn(n).double()
    gram, moment = x.T @ x / noise**2, x.T @ y / noise**2
    start = torch.linalg.solve(gram + torch.eye(len(moment)).double(), moment)
    precision = 1 / (start.square() + 1e-3)
    share = float(TwoLevelChain(*chain, 1, 1).mean)
    extrinsic = torch.full((filters, length), math.log(share / (1 - share))).double()
    inclusion = extrinsic.sigmoid()
    for k in range(40):
        prior = PrecisionPrior(1, 1, 1, 10 ** (-1 - 3 * min(1, k / 25)))
        covariance = torch.linalg.inv(torch.diag(precision) + gram)
        mean = covariance @ moment
        square = (mean.square() + covariance.diag()).reshape(filters, length)
        if factors == "joint":
            evidence = joint_evidence(square, prior)
        else:
            for _ in range(3):
                shape, rate = update_precision(inclusion, square, prior)
                evidence = support_evidence(shape, rate, prior)
                inclusion = (extrinsic + evidence).sigmoid()
        if coupled:
            extrinsic = two_level_messages(evidence, *chain).extrinsic
        inclusion = (extrinsic + evidence).sigmoid()
        if factors == "joint":
            spike = 1.5 / (prior.b_off + square / 2)
            precision = (inclusion * 1.5 / (prior.b + square / 2) + (1 - inclusion) * spike).flatten()
        else:
            precision = (shape / rate).flatten()
    found, true = (inclusion > 0.5).flatten(), (support > 0).flatten()
    f1 = 2 * float((found & true).sum()) / max(1.0, float(found.sum() + true.sum()))
    return f1, float((mean - weight).square().sum() / weight.square().sum().clamp_min(1e-9))


def test_clustered_supports_are_recovered_better_than_with_independent_ones() -> None:
    chained = torch.tensor([recover(True, "joint", seed) for seed in range(8)])
    independent = torch.tensor([recover(False, "joint", seed) for seed in range(8)])
    assert chained[:, 0].mean() > 0.75
    assert chained[:, 0].mean() > independent[:, 0].mean() + 0.15  # F1 0.83 against 0.61
    assert chained[:, 1].mean() < 0.85 * independent[:, 1].mean()


def conv_pair() -> tuple[BayesianModel, TurboGuide, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )
    with torch.no_grad():
        net[0].weight[[1, 4]] *= 1e-4  # two dead filters
    example = torch.randn(2, 1, 8, 8)
    table = channel_groups(net, example)
    model = BayesianModel(net, Turbo(), data_size=50, groups=table)
    return model, TurboGuide(model), example


def test_inclusion_reads_the_filters() -> None:
    _, guide, _ = conv_pair()
    inclusion = guide.inclusion()
    assert set(inclusion) == {"0", "2"}
    assert (inclusion["0"] < 0.5).tolist() == [False, True, False, False, True, False]
    masks = guide.support_masks()
    assert not masks["0.weight"][[1, 4]].any()
    assert torch.equal(guide.masked_means()["0.weight"] != 0, masks["0.weight"])


def test_shrink_cuts_the_guide_with_the_network() -> None:
    model, guide, example = conv_pair()
    plan = PruningPlan({"0": [0, 2, 3, 5], "2": [1, 2]}, {"0": 6, "2": 4})
    small_model, small = shrink(model, guide, plan)
    assert small.loc["0|weight"].shape == (4, 1, 3, 3)
    assert small.support["2|weight"].shape == (2, 4, 3, 3)
    torch.testing.assert_close(small.loc["2|weight"], guide.loc["2|weight"][[1, 2]][:, [0, 2, 3, 5]])
    assert {name: len(p) for name, p in small.inclusion().items()} == {"0": 4, "2": 2}
    assert (small.inclusion()["0"] > 0.5).all()
    # The sites still fit, and the KL is that of the shorter chains.
    y = torch.zeros(2, dtype=torch.long)
    parts = ELBO().parts(small_model, small, example, y)
    found = small.messages("0.weight", small._evidence("0.weight", small._square("0.weight")))
    expected = (found.posterior.sigmoid() * found.evidence).sum() - found.log_normaliser
    torch.testing.assert_close(parts.kl["0.weight.support"], expected)
    again = small.shrink(small_model.groups, PruningPlan({"0": [3]}, {"0": 4}))
    assert again.loc["2|weight"].shape == (2, 1, 3, 3) and len(again.inclusion()["0"]) == 1


def test_state_dict_carries_everything() -> None:
    model, guide, _ = conv_pair()
    guide.set_off_rate(1e-3)
    guide.update(inner=2, learn=True)
    other = TurboGuide(model)
    other.load_state_dict(guide.state_dict())
    for (name, a), (_, b) in zip(guide.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert other.transitions_of("0.weight") == guide.transitions_of("0.weight") != Transitions()
    guide.update(inner=2)
    other.update(inner=2)
    assert torch.equal(guide.support["5|weight"], other.support["5|weight"])


def test_crossing_structure_runs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8))
    with torch.no_grad():
        net[0].weight[:4] *= 1e-4
    model = BayesianModel(net, Turbo(structure="crossing", transitions=Transitions(0.3, 0.3, 0.3, 0.3)), data_size=9)
    guide = TurboGuide(model)
    guide.update()
    mask = guide.support_masks()["0.weight"]
    assert not mask[:4].any() and mask[4:].float().mean() > 0.8
    assert all(
        torch.isfinite(v) for v in ELBO().parts(model, guide, torch.zeros(2, 12), torch.zeros(2).long()).kl.values()
    )


class FakeLoop:
    """The part of a loop that the event uses."""

    def __init__(self, model: BayesianModel, guide: TurboGuide) -> None:
        self.model, self.guide, self.epoch = model, guide, 0
        self.history: list[dict[str, float]] = []

    def apply(self, update: FitUpdate) -> None:
        owners = {"guide": self.guide, "prior": self.model.prior}
        for name, value in update.tensors.items():
            assign(owners, name, value)
        for name, value in update.settings.items():
            assign(owners, name, value, number=False)

    def start(self, event: TurboUpdates) -> None:
        self.apply(event.on_start(self))  # type: ignore[arg-type]

    def epoch_end(self, event: TurboUpdates) -> None:
        self.epoch += 1
        before = {name: value.clone() for name, value in self.guide.named_buffers()}
        update = event.on_epoch_end(self)  # type: ignore[arg-type]
        assert all(torch.equal(value, before[name]) for name, value in self.guide.named_buffers())  # it asks only
        self.apply(update)
        self.history.append(dict(update.metrics))


def test_event_anneals_updates_and_resumes() -> None:
    model, guide, _ = conv_pair()
    event = TurboUpdates(every=1, inner=2, off_rate_start=0.1, anneal=4, point_epochs=2, learn=True)
    loop = FakeLoop(model, guide)
    loop.start(event)
    assert float(guide.off_rate) == pytest.approx(0.1) and guide.point
    rates = []
    for _ in range(2):
        loop.epoch_end(event)
        rates.append(float(guide.off_rate))
    assert not guide.point
    assert rates == pytest.approx([1e-2, 1e-3], rel=1e-4)
    assert {"support_change", "support"} <= loop.history[-1].keys()
    assert model.prior.learned["0.weight"] == guide.transitions_of("0.weight")
    assert model.prior.precision.b_off == pytest.approx(1e-3, rel=1e-4)

    other_model, other_guide, _ = conv_pair()
    other_guide.load_state_dict(guide.state_dict())
    resumed = TurboUpdates(every=1, inner=2, off_rate_start=0.1, anneal=4, point_epochs=2, learn=True)
    resumed.load_state_dict(event.state_dict())
    other = FakeLoop(other_model, other_guide)
    other.epoch = 2
    other.start(resumed)
    for _ in range(8):
        loop.epoch_end(event)
        other.epoch_end(resumed)
    assert float(guide.off_rate) == pytest.approx(1e-5, rel=1e-4)
    for (name, a), (_, b) in zip(guide.named_buffers(), other_guide.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert loop.history[-1]["support_change"] < 1e-3


class CutOnce(Callback):
    """Cuts two filters after the second epoch."""

    def on_epoch_end(self, loop: Any) -> PruningPlan | None:
        return PruningPlan({"0": [0, 1, 3, 4]}, {"0": 6}) if loop.epoch == 2 else None


def test_fit_cuts_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    data = load_data("digits", augment=None)
    example = next(iter(data.train.batches(2)))[0]

    def run(epochs_done: int | None) -> Any:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))
        model = BayesianModel(net, Turbo(), data_size=len(data.train), groups=channel_groups(net, example))
        guide = TurboGuide(model)
        events = [TurboUpdates(anneal=2, point_epochs=1), CutOnce()]
        states: list[dict[str, Any]] = []
        if epochs_done is not None:
            states = [torch.load(tmp_path / f"{epochs_done}.pt", weights_only=True)]
        saved = {"epoch": epochs_done or 0}

        def save(state: dict[str, Any]) -> None:
            saved["epoch"] += 1
            torch.save(state, tmp_path / f"{saved['epoch']}.pt")

        return fit(
            model,
            guide,
            data,
            epochs=4,
            batch_size=256,
            events=events,
            save=save,
            state=states[0] if states else None,
            progress=False,
            precision="fp32",
            estimator="local",
        )

    whole = run(None)
    assert whole.guide.loc["0|weight"].shape[0] == 4
    assert {"support", "support_change"} <= whole.history[-1].keys()
    for done in (1, 3):
        resumed = run(done)
        for (name, a), b in zip(whole.guide.state_dict().items(), resumed.guide.state_dict().values(), strict=True):
            assert torch.equal(a, b), (done, name)
        assert resumed.guide.point is False


@pytest.mark.parametrize("every", [0, 4])
def test_stock_svi_updates_the_factors_by_itself(every: int) -> None:
    model, guide = linear_pair("joint")
    guide.update_every = every
    before = guide.support["0|weight"].clone()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.2}), Trace_ELBO())
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    for _ in range(4):
        svi.step(x, y)
    assert torch.equal(guide.support["0|weight"], before)
    wanted = guide.twin()
    wanted.update(inner=1)
    svi.step(x, y)
    found = guide.support["0|weight"]
    assert torch.equal(found, before) if every == 0 else torch.equal(found, wanted.support["0|weight"])
    assert not torch.equal(wanted.support["0|weight"], before)


def test_updates_are_spread_over_an_epoch() -> None:
    """Three of twelve steps, then the one at the end; the factors are those of the weights of that step."""
    data = load_data("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = BayesianModel(net, Turbo(), data_size=len(data.train))
    guide, updates, seen = TurboGuide(model), TurboUpdates(per_epoch=4, anneal=8, learn=False), []

    class Watch(Callback):
        def on_batch_end(self, state: Any) -> None:
            seen.append((state.step, updates.updates))

    fit(model, guide, data, epochs=2, batch_size=100, validate=False, callbacks=[updates, Watch()], progress=False)
    per_epoch = len(seen) // 2
    changes = [step for (step, now), (_, before) in zip(seen[1:], seen[:-1], strict=True) if now > before]
    assert updates.updates == 8 and guide.update_every == 0
    assert len([step for step in changes if step < per_epoch]) == 3


def test_wrong_use_is_refused() -> None:
    model, guide, _ = conv_pair()
    plain = BayesianModel(nn.Sequential(nn.Linear(2, 2)), Gaussian(1.0), data_size=3)
    with pytest.raises(ConfigError, match="Turbo prior"):
        TurboGuide(plain)
    with pytest.raises(ConfigError, match="factors"):
        TurboGuide(model, factors="both")
    with pytest.raises(ConfigError, match="init_scale"):
        TurboGuide(model, init_scale=0.0)
    with pytest.raises(ConfigError, match="larger precision"):
        guide.set_off_rate(5.0)
    with pytest.raises(ConfigError, match="at least 1"):
        TurboUpdates(inner=0)
    with pytest.raises(ConfigError, match="TurboGuide"):
        TurboUpdates().on_start(FakeLoop(plain, MeanField(plain)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one value"):
        HeldFactor(torch.zeros(2), torch.zeros(())).expand([3])


# What the read-off looks at


def net_pair() -> tuple[BayesianModel, TurboGuide]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    with torch.no_grad():
        net[0].weight[1] *= 1e-4  # a filter without support
        net[2].weight[:, 2:] *= 1e-4
    model = BayesianModel(net, Turbo(), data_size=100, groups=channel_groups(net, torch.zeros(2, 1, 6, 6)))
    return model, TurboGuide(model, scale_lr=5.0, init_scale=1e-4)


def test_odds_of_weights_are_those_of_the_support() -> None:
    guide = net_pair()[1]
    odds, support = guide.weight_odds(), guide.support_masks()
    for name in ("0.weight", "2.weight", "5.weight"):
        key = name.replace(".", "|")
        assert torch.allclose(odds[name].sigmoid(), guide.support[key], atol=1e-4)
        assert torch.equal(odds[name] > 0, support[name])
        assert torch.allclose(odds[name] - guide.weight_evidence()[name], guide.extrinsic[key], atol=1e-3)
    assert not bool(support["0.weight"][1].any()) and bool(support["0.weight"][0].any())


def test_shares_are_those_of_the_evidence_of_a_group() -> None:
    guide = net_pair()[1]
    nats = guide.shares()
    for group, name in (("0", "0.weight"), ("2", "2.weight")):
        rows = torch.stack([torch.log1p(filter.double().exp()).sum() for filter in guide.weight_odds()[name]])
        assert torch.allclose(nats[group].double(), rows / rows.sum(), atol=1e-5)
    assert int(nats["0"].argmin()) == 1 and float(nats["0"].sum()) == pytest.approx(1.0)


def test_a_later_round_keeps_the_unit_of_the_first() -> None:
    model, guide = net_pair()
    plan = PruningPlan({"0": [0, 2], "2": [1, 3]}, {"0": 4, "2": 6})
    small, _ = shrink(model, guide, plan)
    prior = Turbo()
    prior.load_state_dict(model.prior.state_dict())
    later = TurboGuide(BayesianModel(small.deterministic({}), prior, data_size=100, groups=small.groups))
    for name in ("0.weight", "2.weight", "5.weight"):
        assert later.precision_prior(name) == guide.precision_prior(name)


def test_scales_have_their_own_learning_rate() -> None:
    guide = net_pair()[1]
    assert {guide.lr_factor(name) for name, _ in guide.named_parameters() if name.startswith("log_scale")} == {5.0}
    assert {guide.lr_factor(name) for name, _ in guide.named_parameters() if name.startswith("loc")} == {1.0}
    with pytest.raises(ConfigError, match="scale_lr"):
        TurboGuide(net_pair()[0], scale_lr=0.0)


def test_a_bound_on_the_support_by_exhaustive_search() -> None:
    """The price is the smallest (to the tolerance) at which at most `count` weights stay; 0 where nothing binds."""
    guide = net_pair()[1]
    with torch.no_grad():
        for value in guide.loc.values():
            value.copy_(0.3 * torch.randn_like(value).exp() * torch.randn_like(value).sign())
    guide.update()
    free = sum(int(mask.sum()) for mask in guide.support_masks().values())

    def size() -> int:
        guide.update()
        return sum(int((odds > 0).sum()) for odds in guide.weight_odds().values())

    for count in (free // 2, free // 4, free // 2):  # up and down again
        price = guide.bound(count, tries=30)
        assert price > 0 and count >= size() >= 0.8 * count
        guide.price.fill_(price - 1.0)
        assert size() > count  # a nat less is too little
    assert guide.bound(2 * free) == 0.0 and size() == free


def test_a_price_gives_the_best_support_of_its_expected_size() -> None:
    """KL + Σ π̃ price is least at the updated q(s): the KL itself is that to the prior without the price."""
    model, guide = linear_pair("joint")
    guide.update(inner=1)
    free = total_kl(model, guide)
    guide.price.fill_(2.0)
    guide.update(inner=1)
    chains = TwoLevelChain(*guide.transitions_of("0.weight").values(), 2, 3)
    supports = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).reshape(-1, 2, 3)
    evidence = guide.weight_evidence()["0.weight"]
    log_prior = chains.log_prob(supports)
    log_q = (log_prior + (supports * (evidence - 2.0)).sum((-1, -2))).log_softmax(0)
    exact = float((log_q.exp() * (log_q - log_prior)).sum())
    assert float(kl_parts(model, guide)["0.weight.support"]) == pytest.approx(exact, abs=1e-4)
    marginal = (log_q.exp()[:, None, None] * supports).sum(0)
    assert torch.allclose(guide.support["0|weight"], marginal, atol=1e-5)
    assert total_kl(model, guide) > free
