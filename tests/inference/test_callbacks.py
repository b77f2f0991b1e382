"""Callbacks: they ask, the loop changes; what they remember goes by name."""

from __future__ import annotations

import importlib
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.guides import MeanField, NoLatents
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate, assign, load_states, named, states
from pyrobnn.inference.terms import Step


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(96), valid=full.valid.take(20))


def pair(data: Data, prior: Any = None) -> tuple[pb.BayesianModel, Any]:
    torch.manual_seed(0)
    model = pb.BayesianModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), prior, data_size=len(data.train))
    return model, MeanField(model) if prior is not None else NoLatents()


SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 48, "precision": "fp32", "progress": False, "validate": False}


class Ask(Callback):
    """Returns a given update at the end of the first epoch."""

    def __init__(self, update: FitUpdate) -> None:
        self.update = update
        self.seen: list[FitState] = []

    def on_epoch_end(self, state: FitState) -> FitUpdate | None:
        self.seen.append(state)
        return self.update if state.epoch == 1 else None


def test_tensors_change_in_place_and_metrics_reach_the_history(data: Data) -> None:
    model, guide = pair(data)
    weight = model.net[1].weight
    where = weight.data_ptr()
    ask = Ask(FitUpdate(tensors={"net.1.weight": torch.full((10, 64), 0.5)}, metrics={"found": 3.0}))
    fit = pb.fit(model, guide, data, lr=0.0, callbacks=[ask], **SETTINGS)
    assert fit.model.net[1].weight is weight and weight.data_ptr() == where
    assert torch.equal(weight, torch.full((10, 64), 0.5))
    assert fit.history[0]["found"] == 3.0 and "found" not in fit.history[1]


def test_kl_weights_scale_one_site(data: Data) -> None:
    model, guide = pair(data, pb.priors.Gaussian(1.0))
    fit = pb.fit(model, guide, data, lr=0.0, callbacks=[Ask(FitUpdate(kl_weights={"1.weight": 3.0}))], **SETTINGS)
    assert fit.history[1]["kl"] == pytest.approx(3 * fit.history[0]["kl"], rel=1e-5)


def test_a_term_joins_the_loss(data: Data) -> None:
    class Five:
        nll_weight = 1.0

        def __call__(self, step: Step) -> Tensor:
            return step.output.new_tensor(5.0)

    model, guide = pair(data)
    fit = pb.fit(model, guide, data, lr=0.0, callbacks=[Ask(FitUpdate(terms=(Five(),)))], **SETTINGS)
    assert fit.history[1]["loss"] - fit.history[0]["loss"] == pytest.approx(5.0, abs=1e-5)


def test_the_state_is_read_only(data: Data) -> None:
    model, guide = pair(data, pb.priors.Gaussian(1.0))
    ask = Ask(FitUpdate(kl_weights={"1.weight": 2.0}))
    pb.fit(model, guide, data, callbacks=[ask], **SETTINGS)
    state = ask.seen[-1]
    assert (state.epoch, state.step, state.steps_per_epoch, state.progress) == (2, 4, 2, 1.0)
    assert state.kl_weights == {"1.weight": 2.0} and len(state.history) == 2
    with pytest.raises(FrozenInstanceError):
        state.epoch = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        state.kl_weights["1.weight"] = 1.0  # type: ignore[index]
    with pytest.raises(TypeError):
        state.history[0]["loss"] = 0.0  # type: ignore[index]


def test_an_update_that_names_nothing_is_refused() -> None:
    owners = {"guide": SimpleNamespace(loc=torch.zeros(3), temperature=1.0, point=False)}
    assign(owners, "guide.temperature", 0.5)
    assert owners["guide"].temperature == 0.5
    for name, value, match in (
        ("loc", torch.zeros(3), "expected one of guide"),
        ("net.loc", torch.zeros(3), "expected one of guide"),
        ("guide.scale", torch.zeros(3), "no such tensor"),
        ("guide.loc", torch.zeros(2), r"shape \(2,\), expected \(3,\)"),
        ("guide.point", 1.0, "give it as a setting"),
    ):
        with pytest.raises(pb.ConfigError, match=match):
            assign(owners, name, value)


class Counter(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_batch_end(self, state: FitState) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_state_goes_by_name_and_strictly(data: Data, tmp_path: Path) -> None:
    path, first = tmp_path / "fit.pt", [Counter(), Callback(), Counter()]
    pb.fit(*pair(data), data, callbacks=first, checkpoint=path, **SETTINGS)
    assert list(named(first)) == ["Counter", "Callback", "Counter.2"]
    again = [Callback(), Counter(), Counter()]  # another order: each finds its own
    pb.fit(*pair(data), data, callbacks=again, checkpoint=path, resume=True, **SETTINGS)
    assert again[1].count == 4  # type: ignore[attr-defined]
    for other in ([Counter(), Callback()], [*first, Ask(FitUpdate())], []):
        with pytest.raises(pb.CheckpointError, match="Counter, Callback, Counter.2, this fit has"):
            pb.fit(*pair(data), data, callbacks=other, checkpoint=path, resume=True, **SETTINGS)
    with pytest.raises(pb.CheckpointError, match="Counter has the keys seen, expected count"):
        load_states([Counter()], {"Counter": {"seen": 1}})
    with pytest.raises(pb.CheckpointError, match="earlier version"):
        load_states([Counter()], [{"count": 1}])  # type: ignore[arg-type]
    assert states([Counter()]) == {"Counter": {"count": 0}}


def test_a_returned_plan_is_a_cut_and_the_old_name_works(data: Data) -> None:
    with pytest.warns(DeprecationWarning, match=r"inference\.callbacks"):
        event = importlib.import_module("pyrobnn.inference.events").Event

    class Cut(event):  # type: ignore[misc,valid-type]
        def on_epoch_end(self, state: FitState) -> pb.PruningPlan | None:
            return pb.PruningPlan({"conv1": [0, 2]}, {"conv1": 16}) if state.epoch == 1 else None

    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    model = pb.BayesianModel(net, data_size=96, groups=pb.channel_groups(net, data.example))
    fit = pb.fit(model, NoLatents(), data, events=[Cut()], **SETTINGS)
    assert fit.model.net.conv1.weight.shape[0] == 2 and fit.plan is not None and fit.plan.keep["conv1"] == [0, 2]
