"""The settings of a fit as plain values, which a checkpoint holds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

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
