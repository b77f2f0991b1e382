"""Two processes with half of every batch each, and shared noise, are one process with the whole batch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.curvature import expected_fisher
from pyrobnn.criteria.laplace import laplace_gates
from pyrobnn.data import Augment, Data
from pyrobnn.guides.local import local_params
from pyrobnn.inference import precision
from pyrobnn.inference.callbacks import Callback, FitState
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.loop import Loop
from pyrobnn.inference.pricing import PricedKL
from pyrobnn.inference.sync_norm import alone, converted
from pyrobnn.inference.terms import outputs_by_view
from pyrobnn.inference.turbo_updates import TurboUpdates
from pyrobnn.io.processes import current, together
from pyrobnn.methods.history import NormHistory, SimilarPairs
from pyrobnn.methods.registry import METHODS
from pyrobnn.metrics.evaluate import evaluate, noise_accuracy

BATCH, STEPS = 24, 10


def small_data() -> Data:
    """236 training images: nine whole batches, and one of 20."""
    data = pb.load_data("digits")
    return replace(
        data, train=replace(data.train.take(236), augment=Augment(shift=1, flip=True)), valid=data.valid.take(51)
    )


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 10),
    )


class Recorder(Callback):
    """Loss so far and gradients of every step."""

    def __init__(self) -> None:
        self.loop: Loop
        self.losses: list[float] = []
        self.gradients: list[Tensor] = []

    def on_batch_end(self, state: FitState) -> None:
        self.losses.append(self.loop.device_step.read().loss)
        parameters = [*state.guide.parameters(), *state.model.net.parameters()]
        self.gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))


def callbacks_of(name: str, cost: tuple[float, float]) -> list[Callback]:
    if name == "turbo-vbi":
        return [TurboUpdates(per_epoch=4)]
    if name == "hbfp":
        history = NormHistory(per_epoch=5)
        return [history, SimilarPairs(history, 0.5, start=0.3)]
    if name in ("ard", "ss-gl"):
        return [PricedKL({"macs": 0.5}, cost, every=3, site="gate" if name == "ss-gl" else "noise")]
    return []


def ten_steps(name: str) -> dict[str, Any]:
    method, data, net = METHODS[name], small_data(), plain_net()
    table = pb.channel_groups(net, data.example)
    cost = table.cost(None)
    model = pb.BayesianModel(net, method.prior(), data_size=len(data.train), groups=table)
    guide = method.guide(model, **method.recipes.small.guide)
    config = FitConfig(
        epochs=1, batch_size=BATCH, optimizer="sgd", lr=1e-3, guide_lr=1e-3, precision="fp32", device="cpu", same_noise=True,
    )  # fmt: skip
    recorder = Recorder()
    callbacks = [*callbacks_of(name, (float(cost.params), float(cost.macs))), recorder]
    with together(), local_params(model, guide), torch.random.fork_rng(devices=[]):
        recorder.loop = loop = Loop(model, guide, data, config, callbacks)
        loop.run_callbacks("on_start")
        loop.run_epoch(lambda step, loss: None)
        # Pairs that are chosen, prices and closed-form updates are those of the whole batch too.
        kept = [callback.state_dict() for callback in callbacks[:-1]]
    return {"losses": recorder.losses, "gradients": recorder.gradients, "row": loop.history[0], "kept": kept}


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, Tensor):
        return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5)
    return one == (pytest.approx(other, rel=1e-4) if isinstance(one, float) else other)


@pytest.mark.parametrize("name", ["ard", "gaussian", "turbo-vbi", "hbfp", "ss-gl"])
def test_half_of_every_batch_each(name: str, in_processes: Callable[..., list[Any]]) -> None:
    whole, halves = ten_steps(name), in_processes(2, ten_steps, name)
    assert len(whole["losses"]) == STEPS
    for half in halves:
        assert half["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        for mine, theirs in zip(half["gradients"], whole["gradients"], strict=True):
            assert mine.shape == theirs.shape
            assert float((mine - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))
        assert alike(half["kept"], whole["kept"])
        figures = ("loss", "nll", "kl", "train_accuracy", "valid_accuracy")
        assert [half["row"][key] for key in figures] == pytest.approx([whole["row"][key] for key in figures], rel=1e-5)


def passes_without_gradients() -> dict[str, Any]:
    data, net = small_data(), plain_net().append(nn.BatchNorm1d(10))
    with together():
        table = pb.channel_groups(net, data.example)
        fisher = laplace_gates(net.eval(), data, table, examples=150, draws=0)
        model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=len(data.train), groups=table)
        guide = pb.guides.MeanField(model, init_scale=0.1)
        known = pb.summarize(model, guide, draws=0)
        drawn = expected_fisher(ScoringContext(known, table=table, model=model, guide=guide, data=data), 5, images=30)
        pb.reestimate_batchnorm(net, data.train, examples=200, batch_size=30)
        tally = evaluate(net, data.valid, batch_size=8)
        return {
            "nats": {name: channel.nats for name, channel in fisher.channels.items()},
            "ranking": {name: channel.ranking for name, channel in fisher.channels.items()},
            "of draws": drawn.diagonal,
            "of draws, softened": drawn.softened,
            "mean": net[-1].running_mean,
            "variance": net[-1].running_var,
            "batches": int(net[-1].num_batches_tracked),
            "scores": [tally.accuracy, tally.nll, tally.ece],
            "noisy": list(noise_accuracy(net, data.valid, batch_size=8).values()),
            "answers": outputs_by_view(net, data.train, None, torch.device("cpu"), batch_size=50),
        }


def test_passes_without_gradients_are_those_of_one_process(in_processes: Callable[..., list[Any]]) -> None:
    whole = passes_without_gradients()
    for mine in in_processes(3, passes_without_gradients):
        for key, value in whole.items():
            assert alike(mine[key], value), key


def own_noise() -> dict[str, Any]:
    data, net = small_data(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(net[1].weight)
    found = {}
    for same in (True, False):
        model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=len(data.train))
        guide = pb.guides.MeanField(model, init_scale=0.1)
        draws: list[Tensor] = []
        model.register_forward_hook(lambda *_: draws.append(torch.randn(())))  # noqa: B023
        config = FitConfig(epochs=1, batch_size=64, precision="fp32", same_noise=same, validate=False, lr=1e-3)
        result = pb.fit(model, guide, data, config=config, progress=False)
        found[same] = result.guide.state_dict()
        found[f"loss {same}"] = result.history[-1]["loss"]
    return found


def test_noise_is_shared_or_each_process_has_its_own(in_processes: Callable[..., list[Any]]) -> None:
    one, two = in_processes(2, own_noise)
    for same in (True, False):
        assert all(torch.equal(value, two[same][name]) for name, value in one[same].items())
        assert one[f"loss {same}"] == two[f"loss {same}"]
    assert one["loss True"] != one["loss False"]


def twice() -> list[list[int]]:
    found = []
    for _ in range(2):
        with together() as processes:
            found.append(processes.each(processes.rank))
            if processes.first:
                time.sleep(0.5)  # the other one is at the next group before the first has left this one
    return found


def test_one_group_after_another(in_processes: Callable[..., list[Any]]) -> None:
    assert in_processes(2, twice) == [[[0, 1], [0, 1]]] * 2


class FailsInOne(nn.Module):
    """NaN in the second process, once."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        factor = float("nan") if self.calls > 5 and current().rank == 1 and torch.is_grad_enabled() else 1.0
        return self.last(x.flatten(1)) * factor


class Exchanges(torch.autograd.Function):
    """What SyncBatchNorm does in its backward pass: one that does not come keeps the others waiting."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        current().sum(gradient.clone())
        return gradient


class ExchangingFails(FailsInOne):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Exchanges.apply(self.first(x.flatten(1))))


def failing(net: type[nn.Module]) -> str:
    data = small_data()
    model = pb.BayesianModel(net(), pb.priors.Gaussian(1.0), data_size=len(data.train))
    try:
        pb.fit(model, pb.guides.MeanField(model), data, batch_size=8, epochs=1, precision="fp32", progress=False)
    except pb.NumericalError as error:
        return f"{error} {error.told_by_another}"  # type: ignore[attr-defined]
    return "nothing was raised"


@pytest.mark.parametrize("net", [FailsInOne, ExchangingFails])
def test_a_failure_in_one_is_named_in_all_and_told_once(
    net: type[nn.Module], in_processes: Callable[..., list[Any]]
) -> None:
    said = in_processes(2, failing, net)
    assert all("log-likelihood at site 'obs' is nan" in line for line in said)
    assert {line.rsplit(" ", 1)[1] for line in said} == {"True", "False"}


def wrong_in_one() -> list[str]:
    found = []
    with together() as processes:
        for error in (pb.DataError("no such folder"), ValueError("a mistake")):

            def fail(error: Exception = error) -> None:
                raise error

            try:
                processes.first_does(fail)
            except Exception as raised:
                found.append(f"{type(raised).__name__}: {raised}")
        found.append(str(processes.first_does(lambda: [current().size, processes.size])))
        found.append(str(processes.first_leads(lambda: processes.rank)))
        found.append(str(processes.agreed(processes.rank)))
    return found


def test_what_the_first_does_alone(in_processes: Callable[..., list[Any]]) -> None:
    one, two = in_processes(2, wrong_in_one)
    assert one == ["DataError: no such folder", "ValueError: a mistake", "[1, 2]", "0", "0"]
    assert two == ["DataError: no such folder", "ProcessError: a mistake", "[1, 2]", "1", "0"]


def on_two_generations() -> list[Any]:
    with together() as processes:
        precision.cpu_has_bf16 = lambda: processes.first  # type: ignore[assignment]
        found = precision.resolve_precision("auto", torch.device("cpu"), plain_net(), small_data().example)
        return processes.each(found)


def test_processors_without_bfloat16_decide_for_all(in_processes: Callable[..., list[Any]]) -> None:
    assert in_processes(2, on_two_generations) == [[None, None]] * 2


def refused() -> str:
    data, net = small_data(), plain_net()
    model = pb.BayesianModel(net, data_size=len(data.train))
    with pytest.raises(pb.ConfigError) as caught:
        pb.fit(model, lambda *_: None, data, batch_size=3, progress=False)
    return str(caught.value)


def test_a_batch_has_two_examples_for_each(in_processes: Callable[..., list[Any]]) -> None:
    assert set(in_processes(2, refused)) == {
        "a batch of 3 leaves 2 processes less than two examples each: take a batch size of at least 4"
    }


def test_synchronised_layers_are_turned_back() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    x, before = torch.randn(4, 1, 8, 8), dict(net.state_dict())
    expected = net.eval()(x)
    converted(net)
    assert type(net[1]) is nn.SyncBatchNorm and torch.equal(net(x), expected)
    assert net.state_dict().keys() == before.keys()
    alone(net)
    assert type(net[1]) is nn.BatchNorm2d and torch.equal(net(x), expected) and "process_group" not in net[1].__dict__


def told_to_end() -> str:
    try:
        with together() as processes:
            if not processes.first:
                os.kill(os.getpid(), signal.SIGTERM)
            processes.agreed(1)
            processes.each(2)
    except pb.ProcessError as error:
        return str(error)
    return "went on"


def test_a_process_that_is_told_to_end_says_how_to_go_on(in_processes: Callable[..., list[Any]]) -> None:
    one, two = in_processes(2, told_to_end)
    assert "another process of this run has ended" in one and "told to end" in two
    assert "--resume" in one and "--resume" in two
