"""The mean of the last weights: against the trajectory itself, through a resume, and in a run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.averaging import EVERY, WeightAverage
from pyrobnn.inference.callbacks import Callback, FitState


class Trajectory(Callback):
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_batch_end(self, state: FitState) -> None:
        self.weights.append(state.model.net[1].weight.detach().clone())


def fitted(callbacks: list[Callback], **options: Any) -> nn.Module:
    data = pb.load_data("digits")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = pb.BayesianModel(net, data_size=len(data.train))
    settings = {"epochs": 3, "batch_size": 32, "lr": 0.01, "validate": False, "progress": False, **options}
    return pb.fit(model, NoLatents(), data, callbacks=callbacks, **settings).model.net[1]


def test_the_mean_of_the_last_weights_ends_the_fit() -> None:
    path = Trajectory()
    linear = fitted([path, WeightAverage(0.4)])
    count = len(path.weights)
    chosen = [
        w for step, w in enumerate(path.weights, 1) if step >= 0.6 * count and (step % EVERY == 0 or step == count)
    ]
    assert 3 < len(chosen) < count
    assert torch.allclose(linear.weight, torch.stack(chosen).mean(0), atol=1e-6)
    assert not torch.allclose(linear.weight, path.weights[-1], atol=1e-4)


def test_a_fit_that_goes_on_averages_the_same(tmp_path: Path) -> None:
    whole = fitted([WeightAverage(0.7)])

    class Stop(Exception):
        pass

    def stop(state: dict[str, Any]) -> None:
        if state["epoch"] == 2:
            torch.save(state, tmp_path / "state.pt")
            raise Stop

    with pytest.raises(Stop):
        fitted([WeightAverage(0.7)], save=stop)
    again = fitted([WeightAverage(0.7)], state=torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(whole.weight, again.weight)


@pytest.mark.parametrize("share", [0.0, 1.1, -0.1])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(pb.ConfigError, match="share of a fit"):
        WeightAverage(share)


def test_a_run_measures_batchnorm_for_the_mean() -> None:
    """The statistics are those of the mean's own activations, on images that were not augmented."""
    data = pb.load_data("digits", augment=None)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    options: dict[str, Any] = {"target_macs": 0.6, "epochs": 3, "progress": False, "precision": "fp32"}
    result = pb.compress(net, data, "l1", recipe={"average": 0.5}, **options)
    assert result.report["settings"]["average"] == 0.5
    compact = result.compact.cpu()
    images = torch.cat([x for x, _ in data.train.batches(500)])
    with torch.no_grad():
        seen = compact[0](images).mean((0, 2, 3))
    # Batches count alike, the short last one of 54 images too: 2e-3 is more than that can make of means of this size.
    assert torch.allclose(compact[1].running_mean, seen, atol=2e-3)
    again = pb.reestimate_batchnorm(copy.deepcopy(compact), data.train)
    assert torch.allclose(compact[1].running_mean, again[1].running_mean, atol=1e-6)
