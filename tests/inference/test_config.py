"""The settings of a fit as plain values, which a checkpoint holds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.schedules import OneCycle, WarmUp


def _power(exponent: float):
    def schedule(progress: float) -> float:
        return progress**exponent

    return schedule


def test_settings_are_plain_values() -> None:
    config = FitConfig(lr=np.float64(0.5), lr_schedule=OneCycle(0.3), kl_schedule=_power(2.0))  # type: ignore[arg-type]
    found = config.identity()
    assert json.loads(json.dumps(found)) == found and type(found["lr"]) is float
    assert found["lr_schedule"] == ["OneCycle", {"peak": 0.3, "start": 0.1, "floor": 0.0}]
    assert found["kl_schedule"] == ["_power.<locals>.schedule"]


def test_what_must_be_told_alike() -> None:
    config = FitConfig(kl_schedule=WarmUp(0.5))
    for same in ({"device": "cpu"}, {"save_minutes": 1.0}, {"kl_schedule": WarmUp(0.5)}):
        assert replace(config, **same).identity() == config.identity()
    for other in ({"kl_schedule": WarmUp(0.6)}, {"lr_schedule": "constant"}, {"clip": None}, {"seed": 1}):
        assert replace(config, **other).identity() != config.identity()


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": "a"}, {"seed": 0.5}, {"seed": 2**63}, {"seed": None}, {"lr": "fast"}, {"lr": None}, {"epochs": "3"},
        {"epochs": float("inf")}, {"epochs": float("nan")}, {"clip": "a"}, {"batch_size": True}, {"momentum": [0.9]},
    ],
)  # fmt: skip
def test_what_is_no_number_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        FitConfig(**settings)


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="'kl_weight'"):
        pb.fit(None, None, None, kl_weight=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"num_particles": 0}, {"kl_weight": float("nan")}, {"kl_weight": -1.0}])
def test_an_elbo_of_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        pb.ELBO(**settings)
