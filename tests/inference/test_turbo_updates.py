"""The event that updates the factors of Turbo-VBI: its schedule, cuts and resuming under it, wrong use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pyrobnn.channels import PruningPlan, channel_groups
from pyrobnn.data import load_data
from pyrobnn.errors import ConfigError
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.guides.turbo import TurboGuide
from pyrobnn.inference.callbacks import Callback, FitUpdate, assign
from pyrobnn.inference.fit import fit
from pyrobnn.inference.turbo_updates import TurboUpdates
from pyrobnn.model import BayesianModel
from pyrobnn.priors.gaussian import Gaussian
from pyrobnn.priors.turbo import Turbo


def pair(data_size: int = 50) -> tuple[BayesianModel, TurboGuide]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))
    table = channel_groups(net, torch.zeros(2, 1, 8, 8))
    model = BayesianModel(net, Turbo(), data_size=data_size, groups=table)
    return model, TurboGuide(model)


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
    model, guide = pair()
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

    other_model, other_guide = pair()
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

    def run(epochs_done: int | None) -> Any:
        model, guide = pair(len(data.train))
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
    plain = BayesianModel(nn.Sequential(nn.Linear(2, 2)), Gaussian(1.0), data_size=3)
    with pytest.raises(ConfigError, match="at least 1"):
        TurboUpdates(inner=0)
    with pytest.raises(ConfigError, match="TurboGuide"):
        TurboUpdates().on_start(FakeLoop(plain, MeanField(plain)))  # type: ignore[arg-type]
