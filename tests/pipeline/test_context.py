"""What a run decides for its fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.pipeline import context as run_module


@pytest.fixture(scope="module")
def data() -> Data:
    return pb.load_data("digits")


def test_deep_nets_are_trained_by_sgd_and_tuned_by_muon(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: dict[str, Any] = {}
    original = run_module.fit

    def fit(*args: Any, title: str, config: Any, **options: Any) -> Any:
        configs[title] = config
        return original(*args, title=title, config=config, **options)

    monkeypatch.setattr(run_module, "fit", fit)
    few = replace(data, train=data.train.take(256))
    layers: list[nn.Module] = []
    for width in (1, 4, 4, 4, 4):
        layers += [nn.Conv2d(width, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    options: dict[str, Any] = {"target_macs": 0.6, "epochs": 5, "precision": "fp32", "progress": False}
    settings = pb.compress(net, few, "ard", **options).report["settings"]
    assert configs["dense"].optimizer == "sgd" and configs["tune"].optimizer == settings["tune_optimizer"] == "muon"
    assert configs["tune"].lr == settings["tune_lr"]
    small = pb.compress("small_cnn", few, "ard", **options).report["settings"]
    assert small["tune_optimizer"] == configs["tune"].optimizer == "adam"
