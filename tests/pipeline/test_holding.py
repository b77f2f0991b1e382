"""Where the end of a fit is below a line, the last epoch that is steadily above it is what the fit ends with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.callbacks import FitState
from pyrobnn.pipeline.holding import LastHeld


class Seen(LastHeld):
    """Scores that are given, and the tensors after each epoch."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__(self.given, 0.9)
        self.scores, self.states = scores, list[dict[str, Tensor]]()

    def given(self, row: Mapping[str, Any]) -> float:
        return self.scores[row["epoch"] - 1]

    def on_epoch_end(self, state: FitState) -> Any:
        self.states.append({name: value.clone() for name, value in state.model.net.state_dict().items()})
        return super().on_epoch_end(state)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.9, 0.95, 0.8, 0.7], 1),
        ([0.1, 0.95, 0.8, 0.9], 3),
        ([0.1, 0.2, 0.3, 0.4], 3),
        ([0.99, 0.1, 0.1, 0.1], 0),
        ([0.95, 0.8, 0.91, 0.7], 0),  # the third is one above the line by chance
        ([0.8, 0.95, 0.96, 0.7], 2),  # their mean holds
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_the_last_epoch_that_held(scores: list[float], kept: int, resumed: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    data = pb.load_data((torch.rand(60, 1, 8, 8), torch.arange(60) % 2))
    options: dict[str, Any] = {"epochs": 4, "batch_size": 20, "precision": "fp32", "validate": False, "progress": False}
    callback = Seen(scores)
    saved: list[dict[str, Any]] = []
    model = pb.BayesianModel(net, data_size=len(data.train))
    result = pb.fit(
        model, NoLatents(), data, callbacks=[callback], save=lambda state: saved.append(copy.deepcopy(state)), **options
    )
    expected = callback.states[kept]
    if resumed:
        callback = Seen(scores)
        model = pb.BayesianModel(net, data_size=len(data.train))
        result = pb.fit(model, NoLatents(), data, callbacks=[callback], state=saved[2], **options)
    for name, value in result.model.net.state_dict().items():
        assert torch.equal(value, expected[name]), name
