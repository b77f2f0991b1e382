"""The one list of options: what is checked, and what is made from it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import subprocess
import sys
from typing import Any

import pytest

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.pipeline.config import CompressionConfig


@pytest.mark.parametrize(
    ("options", "say"),
    [
        ({"target_macs": 0.5, "max_drop": 1.0}, "give one or the other"),
        ({"target_macs": 1.5}, "--target-macs is the share that may be left, between 0 and 1, got 1.5"),
        ({"target_nonzero": 0.0}, "--target-nonzero is the share"),
        ({"max_drop": -1.0}, "--max-drop is in percentage points, from 0 to 100, got -1"),
        ({"epochs": 1}, "--epochs must be at least 2"),
        ({"epochs": 5, "minutes": 1.0}, "--epochs or --minutes, not both"),
        ({"minutes": math.nan}, "positive and finite"),
        ({"minutes": math.inf}, "positive and finite"),
        ({"seed": 2**63}, "--seed must be from 0"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"min_channels": 0}, "--min-channels must be at least 1"),
        ({"round_to": 0}, "--round-to must be at least 1"),
        ({"round_to": "eight"}, "--round-to expected a whole number or auto, got 'eight'"),
        ({"round_to": True}, "--round-to expected a whole number or auto"),
        ({"target_latency": 1.0}, "--target-latency is the share that may be left"),
        ({"target_latency": 0.5, "max_drop": 1.0}, "--target-latency set its size: give one or the other"),
        ({"estimator": "exact"}, "--estimator must be weight, example, local or moments"),
        ({"bayesian_epochs": -1}, "--bayesian-epochs must be 0 or more"),
        ({"recipe": ["cutout"]}, "--recipe takes NAME=VALUE"),
        ({"target_mac": 0.5}, "compress has no option 'target_mac': did you mean target_macs"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], say: str) -> None:
    with pytest.raises(ConfigError, match=say):
        CompressionConfig.make(options)


def test_the_target_in_the_report() -> None:
    both = CompressionConfig(target_macs=0.3, target_params=0.2)
    assert both.target == {"target_macs": 0.3, "target_params": 0.2} and both.has_budget
    timed = CompressionConfig(target_latency=0.5, round_to="8")
    assert timed.budget == {"latency": 0.5} and timed.has_budget and timed.round_to == 8
    assert timed.identity() != CompressionConfig(target_latency=0.6, round_to="8").identity()
    assert CompressionConfig().target == {} and not CompressionConfig(max_drop=1.0).has_budget


def test_what_the_data_is_told() -> None:
    config = CompressionConfig(image_size=8, stream=True, batch_size=16)
    assert config.data_settings == {"image_size": 8, "stream": True} and config.recipe == {"batch_size": 16}
    assert CompressionConfig().data_settings == {}
    with pytest.raises(ConfigError, match="loaded already, so image_size would do nothing"):
        pb.compress("small_cnn", pb.load_data("digits"), image_size=8)
    with pytest.raises(ConfigError, match="--batch-size must be at least 2"):
        CompressionConfig(batch_size=1)


def test_assignments_become_values() -> None:
    found = CompressionConfig(recipe=["cutout=0.25", "rounds=3", "infer.clip=none", "infer.lr_schedule=cosine"])  # type: ignore[arg-type]
    assert found.recipe == {"cutout": 0.25, "rounds": 3, "infer.clip": None, "infer.lr_schedule": "cosine"}
    assert CompressionConfig(protect="conv*").protect == ("conv*",)  # type: ignore[arg-type]


def test_compress_takes_what_the_list_says() -> None:
    parameters = inspect.signature(pb.compress).parameters
    options = {option.name: option for option in CompressionConfig.options()}
    assert set(parameters) - {"net", "data", "likelihood", "prior", "guide"} == set(options)
    assert all(parameters[name].default == option.default for name, option in options.items())
    for option in options.values():
        assert option.name in ("method", "task") or f"{option.name}: {option.help}" in (pb.compress.__doc__ or "")


def test_every_option_says_what_it_is() -> None:
    assert [o.name for o in CompressionConfig.options()] == [f.name for f in dataclasses.fields(CompressionConfig)]
    assert next(o for o in CompressionConfig.options() if o.name == "target_macs").flag == "--target-macs"
    with pytest.raises(dataclasses.FrozenInstanceError):
        CompressionConfig().seed = 3  # type: ignore[misc]


def test_the_list_loads_nothing_heavy() -> None:
    script = "import sys, pyrobnn.pipeline.config; print([m for m in ('torch', 'pyro') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
