"""One fit: data scaling, schedules, events, cuts on the way, and resuming to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.guides import MeanField, NoLatents
from pyrobnn.guides.local import local_params
from pyrobnn.inference.callbacks import Callback, FitState, Temperature
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.fit import Loop
from pyrobnn.inference.schedules import OneCycle, WarmUp
from pyrobnn.priors.noise import SpikeNoise


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(192), valid=full.valid.take(40), test=full.test.take(60))


def small() -> nn.Module:
    torch.manual_seed(0)
    return pb.nets.build("small_cnn", in_channels=1, image_size=8)


def model_of(data: Data, *, weights: bool = False) -> pb.BayesianModel:
    net = small()
    groups = pb.channel_groups(net, data.example)
    prior = SpikeNoise(1.0, weights=pb.priors.Gaussian("fan_in") if weights else None)
    return pb.BayesianModel(net, prior, data_size=len(data.train), groups=groups)


def written(model: pb.BayesianModel) -> Callable[..., None]:
    sizes = {name: value.shape for name, value in model.initial_values().items()}

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        for name, size in sizes.items():
            loc = pyro.param(f"{name}.loc", torch.ones(size))
            scale = pyro.param(f"{name}.scale", torch.full(size, 0.1), constraint=dist.constraints.positive)
            pyro.sample(name, dist.Normal(loc, scale).to_event(len(size)))

    return guide


GUIDES: dict[str, Callable[[pb.BayesianModel], Any]] = {
    "mean-field": MeanField,
    "AutoNormal": lambda m: AutoNormal(m, init_scale=0.05),
    "low rank": lambda m: AutoLowRankMultivariateNormal(m, rank=2, init_scale=0.05),
    "delta": AutoDelta,
    "function": written,
}


class Stop(BaseException):
    """The end of a process."""


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows(result: pb.FitResult) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


def killed_and_resumed(
    make: Callable[[], tuple[pb.BayesianModel, Any, list[Callback]]], data: Data, path: Path, step: int, **settings: Any
) -> pb.FitResult:
    model, guide, events = make()
    original, count = Loop.train_step, 0

    def train_step(self: Loop, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            raise Stop
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Loop, "train_step", train_step)
        pb.fit(model, guide, data, checkpoint=path, events=events, progress=False, **settings)
    model, guide, events = make()
    return pb.fit(model, guide, data, checkpoint=path, resume=True, events=events, progress=False, **settings)


SETTINGS: dict[str, Any] = {"epochs": 4, "batch_size": 48, "lr": 2e-3, "precision": "fp32", "seed": 5}


@pytest.mark.parametrize("kind", GUIDES)
def test_resume_is_exact(kind: str, data: Data, tmp_path: Path) -> None:
    def make() -> tuple[pb.BayesianModel, Any, list[Callback]]:
        model = model_of(data)
        pyro.set_rng_seed(1)
        return model, GUIDES[kind](model), []

    model, guide, _ = make()
    whole = pb.fit(model, guide, data, progress=False, **SETTINGS)
    resumed = killed_and_resumed(make, data, tmp_path / "fit.pt", step=10, **SETTINGS)
    assert equal(whole.model.net.state_dict(), resumed.model.net.state_dict())
    assert equal(whole.guide.state_dict(), resumed.guide.state_dict())
    assert rows(whole) == rows(resumed) and len(rows(whole)) == 4
    torch.load(tmp_path / "fit.pt", weights_only=True)


@pytest.mark.parametrize("estimator", ["weight", "local"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_resume_with_weights_random_too(estimator: str, optimizer: str, data: Data, tmp_path: Path) -> None:
    settings = {**SETTINGS, "epochs": 3, "estimator": estimator, "optimizer": optimizer, "lr_schedule": OneCycle()}

    def make() -> tuple[pb.BayesianModel, Any, list[Callback]]:
        model = model_of(data, weights=True)
        return model, MeanField(model), []

    model, guide, _ = make()
    whole = pb.fit(model, guide, data, progress=False, **settings)
    resumed = killed_and_resumed(make, data, tmp_path / "fit.pt", step=7, **settings)
    assert equal(whole.guide.state_dict(), resumed.guide.state_dict())
    assert equal(whole.model.net.state_dict(), resumed.model.net.state_dict())


class CutAt(Callback):
    """Cuts after some epochs; counts, and must not forget what it counted."""

    def __init__(self, plans: dict[int, Callable[[FitState], pb.PruningPlan]]) -> None:
        self.plans = plans
        self.seen: dict[str, int] = {"batches": 0, "epochs": 0, "cuts": 0}

    def on_batch_end(self, loop: FitState) -> None:
        self.seen["batches"] += 1

    def on_epoch_end(self, loop: FitState) -> pb.PruningPlan | None:
        self.seen["epochs"] += 1
        make = self.plans.get(loop.epoch)
        return make(loop) if make is not None else None

    def on_cut(self, loop: FitState, plan: pb.PruningPlan) -> None:
        self.seen["cuts"] += 1

    def state_dict(self) -> dict[str, Any]:
        return dict(self.seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = dict(state)


def every(step: int, offset: int = 0) -> Callable[[FitState], pb.PruningPlan]:
    """Keeps every `step`-th unit of each group, in current coordinates."""

    def make(loop: FitState) -> pb.PruningPlan:
        widths = loop.model.groups.widths()
        return pb.PruningPlan({n: list(range(offset, w, step)) for n, w in widths.items()}, widths)

    return make


# Foreign guides are replaced by mean-field at the first cut, so one place is enough for them.
@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("mean-field", 2),
        ("mean-field", 6),
        ("mean-field", 10),
        ("mean-field", 14),
        ("AutoNormal", 10),
        ("function", 10),
    ],
)
def test_resume_across_cuts(kind: str, step: int, data: Data, tmp_path: Path) -> None:
    """Killed before, between and after two cuts made by an event."""

    def make() -> tuple[pb.BayesianModel, Any, list[Callback]]:
        model = model_of(data, weights=kind == "mean-field")
        pyro.set_rng_seed(1)
        return model, GUIDES[kind](model), [CutAt({1: every(2), 3: every(2, 1)})]

    model, guide, events = make()
    whole = pb.fit(model, guide, data, events=events, progress=False, **SETTINGS)
    assert whole.model.net.conv1.weight.shape[0] == 4 and isinstance(whole.guide, MeanField)
    assert whole.plan is not None and whole.plan.keep["conv1"] == [2, 6, 10, 14]  # original coordinates
    assert events[0].seen == {"batches": 16, "epochs": 4, "cuts": 2}
    resumed = killed_and_resumed(make, data, tmp_path / "fit.pt", step=step, **SETTINGS)
    assert equal(whole.guide.state_dict(), resumed.guide.state_dict())
    assert equal(whole.model.net.state_dict(), resumed.model.net.state_dict())
    assert rows(whole) == rows(resumed) and resumed.plan.keep == whole.plan.keep


def test_event_state_comes_back(data: Data, tmp_path: Path) -> None:
    events: list[CutAt] = []

    def make() -> tuple[pb.BayesianModel, Any, list[Callback]]:
        model = model_of(data)
        events.append(CutAt({1: every(2)}))
        return model, MeanField(model), [events[-1]]

    killed_and_resumed(make, data, tmp_path / "fit.pt", step=11, **SETTINGS)
    assert events[-1].seen == {"batches": 16, "epochs": 4, "cuts": 1}


def test_moments_are_sliced_like_their_parameters(data: Data) -> None:
    model = model_of(data)
    guide = MeanField(model)
    config = FitConfig(**{**SETTINGS, "epochs": 3})
    with local_params(model, guide), torch.random.fork_rng(devices=[]):
        loop = Loop(model, guide, data, config)
        loop.run_epoch(lambda step, loss: None)

        def state() -> dict[str, dict[str, Tensor]]:
            named = [*loop.model.net.named_parameters(), *loop.guide.named_parameters()]
            return {name: {k: v.clone() for k, v in loop.optimiser.state[p].items()} for name, p in named}

        def values() -> dict[str, Tensor]:
            named = [*loop.model.net.named_parameters(), *loop.guide.named_parameters()]
            return {name: p.detach().clone() for name, p in named}

        before, old = state(), values()
        one, two, three = [1, 4, 9], [0, 5, 6, 30], list(range(3, 64, 5))
        loop.cut(pb.PruningPlan({"conv1": one, "conv2": two, "fc1": three}, {"conv1": 16, "conv2": 32, "fc1": 64}))
        after, new = state(), values()
        flat = [4 * c + k for c in two for k in range(4)]  # 2x2 positions of each channel after the flatten

        def by_hand(name: str, value: Tensor) -> Tensor:
            rules = {
                "conv1.weight": lambda v: v[one],
                "bn1.weight": lambda v: v[one],
                "bn1.bias": lambda v: v[one],
                "conv2.weight": lambda v: v[two][:, one],
                "bn2.weight": lambda v: v[two],
                "bn2.bias": lambda v: v[two],
                "fc1.weight": lambda v: v[three][:, flat],
                "fc1.bias": lambda v: v[three],
                "fc2.weight": lambda v: v[:, three],
                "fc2.bias": lambda v: v,
            }
            for group, units in (("conv1", one), ("conv2", two), ("fc1", three)):
                for part in ("loc", "log_scale"):
                    rules[f"{part}.{group}|noise"] = lambda v, units=units: v[units]
            return rules[name](value)

        assert set(new) == set(old) == set(after) and len(old) == 16
        for name, moments in before.items():
            assert torch.equal(new[name], by_hand(name, old[name])), name
            assert set(after[name]) == set(moments) and torch.equal(after[name]["step"], moments["step"])
            for key in ("exp_avg", "exp_avg_sq"):
                assert bool(moments[key].any()), (name, key)
                assert torch.equal(after[name][key], by_hand(name, moments[key])), (name, key)
        in_optimiser = {id(p) for g in loop.optimiser.param_groups for p in g["params"]}
        named = [*loop.model.net.named_parameters(), *loop.guide.named_parameters()]
        assert in_optimiser == {id(p) for _, p in named}
        loop.run_epoch(lambda step, loss: None)
        assert all(not torch.equal(p, new[name]) for name, p in loop.guide.named_parameters())


def test_a_cut_does_not_touch_the_given_pair(data: Data) -> None:
    model = model_of(data)
    guide = MeanField(model)
    net, state = ({n: v.clone() for n, v in part.state_dict().items()} for part in (model.net, guide))
    widths = model.groups.widths()
    plan = pb.PruningPlan({n: list(range(0, w, 2)) for n, w in widths.items()}, widths)
    small_model, small_guide = pb.shrink(model, guide, plan)
    assert equal(net, model.net.state_dict()) and equal(state, guide.state_dict())
    assert model.groups.widths() == widths
    assert small_model.groups.widths() == {n: len(k) for n, k in plan.keep.items()}
    assert torch.equal(small_guide.loc["conv1|noise"], guide.loc["conv1|noise"][::2])
    with pytest.raises(pb.PlanError, match="channel groups"):
        pb.shrink(pb.BayesianModel(small(), data_size=3), NoLatents(), plan)


# One loop, its scaling and its settings


def linear(data: Data) -> pb.BayesianModel:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=len(data.train))


@pytest.mark.parametrize("batch", [16, 50, 192])
def test_history_is_per_example_whatever_the_batch(batch: int, data: Data) -> None:
    model = linear(data)
    guide = MeanField(model, init_scale=1e-6)
    config = {"epochs": 1, "batch_size": batch, "lr": 0.0, "lr_schedule": "constant", "precision": "fp32"}
    row = pb.fit(model, guide, data, progress=False, **config).history[0]
    x = data.train.normalise(data.train.images)
    with torch.no_grad():
        logits = pb.deterministic_net(model, guide)(x)
    nll = float(nn.functional.cross_entropy(logits, data.train.labels))
    assert row["nll"] == pytest.approx(nll, rel=1e-4)
    loc, sd = guide.moments()["1.weight"]
    kl = float((-sd.log() + 0.5 * (sd**2 + loc**2) - 0.5).sum()) / len(data.train)
    assert row["kl"] == pytest.approx(kl, rel=1e-4)
    assert row["loss"] == pytest.approx(nll + kl, rel=1e-4)
    assert row["train_accuracy"] == pytest.approx(float((logits.argmax(-1) == data.train.labels).float().mean()))
    valid = data.valid.normalise(data.valid.images)
    with torch.no_grad():
        right = pb.deterministic_net(model, guide)(valid).argmax(-1) == data.valid.labels
    assert row["valid_accuracy"] == pytest.approx(float(right.float().mean()))


def test_the_gradient_does_not_depend_on_the_batch_size_in_expectation(data: Data) -> None:
    """Full-batch gradient = mean of the gradients of equal batches (a guide without spread)."""
    model = linear(data)
    guide = MeanField(model, init_scale=1e-8)
    x, y = data.train.normalise(data.train.images), data.train.labels

    def gradient(a: int, b: int) -> Tensor:
        guide.zero_grad()
        (pb.ELBO().differentiable_loss(model, guide, x[a:b], y[a:b]) / len(x)).backward()
        return guide.loc["1|weight"].grad.clone()

    whole = gradient(0, 192)
    parts = torch.stack([gradient(k, k + 24) for k in range(0, 192, 24)]).mean(0)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_clip_bounds_the_step(data: Data) -> None:
    model = linear(data)
    guide = MeanField(model)
    before = torch.cat([p.detach().flatten().clone() for p in [*model.parameters(), *guide.parameters()]])
    settings = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "lr_schedule": "constant", "validate": False}
    pb.fit(model, guide, data, epochs=1, batch_size=192, clip=1e-3, progress=False, **settings)
    after = torch.cat([p.detach().flatten() for p in [*model.parameters(), *guide.parameters()]])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)


class Watch(Callback):
    def __init__(self) -> None:
        self.lr: list[tuple[float, ...]] = []
        self.kl: list[float] = []
        self.progress: list[float] = []

    def on_batch_end(self, loop: FitState) -> None:
        self.lr.append(loop.rates)
        self.kl.append(loop.kl_weight)
        self.progress.append(loop.progress)


def test_schedules_follow_progress(data: Data) -> None:
    model, watch = linear(data), Watch()
    guide = MeanField(model)
    cycle, warm = OneCycle(0.3), WarmUp(0.5, 0.1, 0.8)
    pb.fit(
        model, guide, data, epochs=3, batch_size=48, lr=1e-3, guide_lr=1e-2, lr_schedule=cycle, kl_schedule=warm,
        events=[watch], progress=False,
    )  # fmt: skip
    assert len(watch.kl) == 12 and watch.progress == pytest.approx([(k + 1) / 12 for k in range(12)])
    for k in range(12):
        factor = cycle(k / 12)
        assert watch.lr[k] == pytest.approx((1e-3 * factor, 1e-2 * factor))
        assert watch.kl[k] == pytest.approx(warm(k / 12))


def test_temperature_event(data: Data) -> None:
    model = linear(data)
    guide = MeanField(model)
    guide.temperature = 9.0
    pb.fit(model, guide, data, epochs=2, events=[Temperature(WarmUp(1.0, 1.0, 0.1))], progress=False)
    assert guide.temperature == pytest.approx(0.1)


def test_bad_settings(data: Data, tmp_path: Path) -> None:
    model = linear(data)
    guide = MeanField(model)
    for wrong in ({"epochs": -1}, {"batch_size": 0}, {"lr": -1.0}, {"optimizer": "lbfgs"}, {"lr_schedule": "stairs"}):
        with pytest.raises(pb.ConfigError):
            pb.fit(model, guide, data, progress=False, **wrong)
    path = tmp_path / "fit.pt"
    pb.fit(model, guide, data, epochs=1, checkpoint=path, progress=False)
    with pytest.raises(pb.CheckpointError, match=r"epochs=1, this fit has 2"):
        pb.fit(model, guide, data, epochs=2, checkpoint=path, resume=True, progress=False)
    with pytest.raises(pb.CheckpointError, match="kl_schedule"):
        pb.fit(model, guide, data, epochs=1, kl_schedule=WarmUp(0.5), checkpoint=path, resume=True, progress=False)
    with pytest.raises(pb.CheckpointError, match="callbacks none, this fit has Callback"):
        pb.fit(model, guide, data, epochs=1, events=[Callback()], checkpoint=path, resume=True, progress=False)
    pb.fit(model, guide, data, epochs=1, device="cpu", checkpoint=path, resume=True, progress=False)
    torch.save({"carry": {}}, tmp_path / "run.pt")
    with pytest.raises(pb.CheckpointError, match="not one of a fit"):
        pb.fit(model, guide, data, epochs=1, checkpoint=tmp_path / "run.pt", resume=True, progress=False)
    other = model_of(data)
    with pytest.raises(pb.CheckpointError, match="does not fit this model"):
        pb.fit(other, MeanField(other), data, epochs=1, checkpoint=path, resume=True, progress=False)


def test_nan_stops_with_the_name_of_the_site(data: Data) -> None:
    model = linear(data)
    guide = MeanField(model)
    with torch.no_grad():
        guide.loc["1|weight"][0, 0] = float("nan")
    with pyro.validation_enabled(False), pytest.raises(pb.NumericalError, match=r"'1\.weight'"):
        pb.fit(model, guide, data, epochs=1, progress=False)
