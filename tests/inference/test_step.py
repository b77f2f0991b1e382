"""A step reads nothing, sums what it did, and a failed one is found again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.guides import MeanField, NoLatents
from pyrobnn.guides.local import local_params
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.loop import Loop
from pyrobnn.inference.out_of_distribution import OutOfDistributionDistillation
from pyrobnn.inference.schedules import WarmUp
from pyrobnn.inference.step import CapturedStep
from pyrobnn.inference.terms import Distillation
from pyrobnn.methods.registry import METHODS
from pyrobnn.priors.gaussian import Gaussian
from pyrobnn.priors.noise import ARDNoise

# What makes the host wait for the device: values that become numbers, and shapes that depend on values.
READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "_unique2")
TO_HOST = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__array__")


class NoReads(TorchDispatchMode):
    """Fails on operations that wait for the device; on the CPU, where nothing would be noticed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        boolean = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in READS or boolean:
            raise AssertionError(f"the step reads: {name}")
        return func(*args, **(kwargs or {}))


class NoCopies(TorchFunctionMode):
    """Fails on calls that bring values to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in TO_HOST and isinstance(args[0], Tensor):
            raise AssertionError(f"the step copies to the host: {func.__name__}")
        return func(*args, **(kwargs or {}))


@contextmanager
def unread() -> Iterator[None]:
    with NoCopies(), NoReads():
        yield


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(96), valid=full.valid.take(20))


def batch(data: Data) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = next(iter(data.train.examples(32, generator=generator)))
    return found.x, found.y, found.view


@contextmanager
def loop_of(model: pb.BayesianModel, guide: Any, data: Data, **settings: Any) -> Iterator[Loop]:
    terms = settings.pop("terms", ())
    config = FitConfig(**{"epochs": 1, "batch_size": 32, "precision": "fp32", **settings})
    with local_params(model, guide), torch.random.fork_rng(devices=[]):
        yield Loop(model, guide, data, config, terms=terms)


def test_the_watch_sees_reads() -> None:
    x = torch.arange(3.0)
    for read in (
        x[0].item,
        x[0].__bool__,
        x.nonzero,
        lambda: x[x > 1],
        lambda: x.equal(x),
        x.tolist,
        lambda: float(x[0]),
    ):
        with pytest.raises(AssertionError, match="the step"), unread():
            read()
    with unread():
        x[torch.tensor([0, 2])].sum().exp()


@pytest.mark.parametrize("name", list(METHODS))
def test_the_step_of_every_method_reads_nothing(name: str, data: Data) -> None:
    method = METHODS[name]
    torch.manual_seed(0)
    recipe = method.recipes.small
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    groups = pb.channel_groups(net, data.example)
    model = pb.BayesianModel(net, method.prior(), data_size=96, groups=groups)
    terms = [Distillation(net, 0.5)]
    optimizers = ("adam", "sgd", "muon") if name == "l1" else ("adam",)
    for optimizer in optimizers:
        guide = method.guide(model, **recipe.guide)
        with loop_of(model, guide, data, estimator=recipe.estimator, terms=terms, optimizer=optimizer) as loop:
            x, y, view = batch(data)
            loop.train_step(x, y, view)  # with the checks of a first step
            before = {n: p.detach().clone() for n, p in loop.guide.named_parameters()}
            with pyro.validation_enabled(False), unread():
                loop.device_step(x, y, view)
            assert loop.read().good == 2
            assert all(not torch.equal(p, before[n]) for n, p in loop.guide.named_parameters() if "gate" not in n)


def test_sums_are_those_of_the_steps(data: Data) -> None:
    model = pb.BayesianModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Gaussian(1.0), data_size=96)
    with loop_of(model, MeanField(model), data, lr=0.0, guide_lr=0.0) as loop:
        x, y, _ = batch(data)
        totals = torch.zeros(3, dtype=torch.float64)
        for size in (32, 7):
            before = loop.read()
            loop.train_step(x[:size], y[:size])
            after = loop.read()
            totals += torch.tensor([after.loss - before.loss, after.nll - before.nll, after.kl - before.kl])
            loc, sd = loop.guide.moments()["1.weight"]
            kl = float((-sd.log() + 0.5 * (sd**2 + loc**2) - 0.5).sum()) / 96
            assert (after.kl - before.kl) / size == pytest.approx(kl, rel=1e-4)
            assert after.loss - before.loss == pytest.approx(after.nll - before.nll + after.kl - before.kl, rel=1e-6)
        assert totals.tolist() == pytest.approx([after.loss, after.nll, after.kl])


class Spoil(Callback):
    """Puts a value into a tensor after some steps."""

    def __init__(self, name: str, value: float, step: int) -> None:
        self.name, self.value, self.step = name, value, step

    def on_batch_end(self, state: FitState) -> FitUpdate | None:
        if state.step != self.step:
            return None
        owner = state.guide if self.name.startswith("guide.") else state.model.net
        part, key = self.name.removeprefix("guide.").removeprefix("net.").rsplit(".", 1)
        value = (
            (getattr(owner, part)[key] if owner is state.guide else owner.get_parameter(f"{part}.{key}"))
            .detach()
            .clone()
        )
        value.view(-1)[0] = self.value
        return FitUpdate(tensors={self.name: value})


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * math.nan


class Hidden(nn.Module):
    """Fine forwards, not backwards."""

    def forward(self, x: Tensor) -> Tensor:
        return BadGradient.apply(x)


@pytest.mark.parametrize("clip", [None, 10.0])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_a_gradient_that_is_not_finite_is_named_and_moves_nothing(
    clip: float | None, optimizer: str, data: Data
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), Hidden(), nn.Flatten(), nn.Linear(72, 10))
    model = pb.BayesianModel(net, data_size=96)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "progress": False, "precision": "fp32"}
    with pytest.raises(pb.NumericalError, match=r"gradient of '0\.(weight|bias)' is not finite"):
        pb.fit(model, NoLatents(), data, clip=clip, optimizer=optimizer, **settings)
    assert all(torch.equal(p, q) for p, q in zip(model.net.parameters(), net.parameters(), strict=True))


def test_a_failure_in_mid_epoch_is_found_at_its_step(data: Data) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16, "progress": False, "precision": "fp32"}
    model = pb.BayesianModel(net, data_size=96)
    with pytest.raises(pb.NumericalError, match=r"'obs' is -?(nan|inf).*first in the output of module '1'"):
        pb.fit(model, NoLatents(), data, callbacks=[Spoil("net.1.bias", math.inf, 4)], **settings)

    class Wrong:
        nll_weight = 1.0

        def __call__(self, step: Any) -> Tensor:
            return step.output.mean() * math.nan

    with pytest.raises(pb.NumericalError, match="term Wrong of the loss is nan"):
        pb.fit(pb.BayesianModel(net, data_size=96), NoLatents(), data, terms=[Wrong()], **settings)


def test_settings_are_refused_by_name() -> None:
    wrong: dict[str, Any] = {
        "kl_schedule": -1, "lr": math.nan, "guide_lr": -1e-3, "weight_decay": math.inf, "clip": 0.0, "momentum": 1.0,
        "num_particles": 0, "max_steps": 0, "batch_size": 0, "lr_schedule": math.nan, "epochs": 1.5,
    }  # fmt: skip
    for name, value in [*wrong.items(), ("lr", 1e38), ("guide_lr", 1e38)]:
        with pytest.raises(pb.ConfigError, match=f"^{name} must"):
            FitConfig(**{name: value})


def test_a_schedule_that_leaves_its_range_is_refused(data: Data) -> None:
    model = pb.BayesianModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data_size=96)
    with pytest.raises(pb.ConfigError, match="kl_schedule must give finite"):
        pb.fit(model, NoLatents(), data, epochs=1, kl_schedule=lambda progress: -1.0, progress=False)


def test_the_first_step_is_validated_and_the_others_are_not(data: Data, monkeypatch: Any) -> None:
    seen: list[bool] = []
    original = pb.ELBO.parts

    def parts(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(pyro.infer.util.is_validation_enabled())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pb.ELBO, "parts", parts)
    model = pb.BayesianModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Gaussian(1.0), data_size=96)
    with pyro.validation_enabled(True):
        pb.fit(model, MeanField(model), data, epochs=1, batch_size=32, progress=False)
        assert seen[0] is True and not any(seen[1:])
        assert pyro.infer.util.is_validation_enabled()


class Rehearsed(CapturedStep):
    """A captured step without CUDA: warm-up and recording run the step, a replay runs it again."""

    recordings = 0

    def _recorded(self, run: Any) -> Any:
        type(self).recordings += 1
        with torch.random.fork_rng(devices=[]):
            for _ in range(3):
                self.objective.model.forget_batch()
                run()

        def replay() -> None:
            self.objective.model.forget_batch()
            run()

        return replay


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
@pytest.mark.parametrize("prior", [None, Gaussian("fan_in"), ARDNoise()])
def test_a_captured_step_leaves_what_the_eager_one_leaves(
    prior: Any, optimizer: str, data: Data, monkeypatch: Any
) -> None:
    """All but the CUDA calls: static batches, tensors for what changes, restored state, recording anew after a cut."""

    class Cut(Callback):
        def on_batch_end(self, state: FitState) -> FitUpdate | None:
            if state.step == 2:
                return FitUpdate(kl_weights={"conv1.noise": 2.0} if isinstance(prior, ARDNoise) else {})
            return FitUpdate(terms=(Distillation(net, 0.5),)) if state.step == 3 else None

        def on_epoch_end(self, state: FitState) -> FitUpdate | None:
            return FitUpdate(plan=pb.PruningPlan({"conv1": [0, 2, 5]}, {"conv1": 16})) if state.epoch == 1 else None

    torch.manual_seed(0)
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    few = replace(data, train=data.train.take(90))  # the last batch is a short one

    def fitted() -> pb.FitResult:
        torch.manual_seed(1)
        model = pb.BayesianModel(net, prior, data_size=90, groups=pb.channel_groups(net, data.example))
        guide = NoLatents() if prior is None else MeanField(model)
        return pb.fit(
            model, guide, few, epochs=2, batch_size=20, optimizer=optimizer, callbacks=[Cut()], lr=1e-3,
            kl_schedule=WarmUp(0.5), lr_schedule="cosine", precision="fp32", progress=False,
        )  # fmt: skip

    eager = fitted()
    Rehearsed.recordings = 0
    monkeypatch.setattr(
        "pyrobnn.inference.steps.new_step", lambda o, opt, config, device: Rehearsed(o, opt, config.clip, device)
    )
    captured = fitted()
    # The first batch, a new weight of a KL (noise only), a new term, and the network after the cut.
    assert Rehearsed.recordings == (4 if isinstance(prior, ARDNoise) else 3)
    for part in ("model", "guide"):
        here, there = (getattr(result, part).state_dict() for result in (captured, eager))
        assert here.keys() == there.keys()
        for name, value in there.items():
            assert torch.allclose(here[name].float(), value.float(), rtol=1e-5, atol=1e-6), name
    rows = [[row["loss"], row["kl"], row["train_accuracy"]] for result in (captured, eager) for row in result.history]
    assert torch.allclose(torch.tensor(rows[:2]), torch.tensor(rows[2:]), rtol=1e-5)


def test_what_cannot_be_captured_is_named_once(data: Data, monkeypatch: Any) -> None:
    class Failing(CapturedStep):
        def _recorded(self, run: Any) -> Any:
            run()
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 32, "progress": False, "precision": "fp32"}
    eager = pb.fit(pb.BayesianModel(net, data_size=96), NoLatents(), data, **settings)
    monkeypatch.setattr(
        "pyrobnn.inference.steps.new_step", lambda o, opt, config, device: Failing(o, opt, config.clip, device)
    )
    with pytest.warns(UserWarning, match="runs eagerly: operation not permitted when stream is capturing$") as caught:
        found = pb.fit(pb.BayesianModel(net, data_size=96), NoLatents(), data, **settings)
    assert len(caught) == 1
    for a, b in zip(found.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    with pytest.warns(UserWarning, match="the term OutOfDistributionDistillation draws numbers on the host"):
        pb.fit(
            pb.BayesianModel(conv(), data_size=96),
            NoLatents(),
            data,
            terms=[OutOfDistributionDistillation(conv())],
            **settings,
        )


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(METHODS))
def test_captured_equals_eager_on_cuda(name: str, data: Data) -> None:
    method = METHODS[name]
    states = []
    for capture in ("auto", "off"):
        torch.manual_seed(0)
        net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
        model = pb.BayesianModel(net, method.prior(), data_size=96, groups=pb.channel_groups(net, data.example))
        recipe = method.recipes.small
        guide = method.guide(model, **recipe.guide)
        with loop_of(model, guide, data, estimator=recipe.estimator, device="cuda", capture=capture) as loop:
            x, y, view = (part.cuda() for part in batch(data))
            for _ in range(20):
                loop.train_step(x, y, view)
            loop.read()
            states.append([*loop.model.net.state_dict().values(), *loop.guide.state_dict().values()])
    for a, b in zip(*states, strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-5, atol=1e-5)
