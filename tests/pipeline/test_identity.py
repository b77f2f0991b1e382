"""What tells one run from another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.data import Augment, Data
from pyrobnn.inference.schedules import OneCycle
from pyrobnn.io.checkpoint import load_checkpoint, save_checkpoint
from pyrobnn.methods.bayes_l1 import bayes_l1
from pyrobnn.methods.hbfp import hbfp
from pyrobnn.methods.registry import METHODS, get_method
from pyrobnn.pipeline.config import CompressionConfig
from pyrobnn.pipeline.identity import difference, identity
from pyrobnn.pipeline.method import Method
from pyrobnn.tasks import classification

GAUSSIAN = get_method("gaussian")


def changed(values: dict[str, Any]) -> Method:
    return replace(GAUSSIAN, recipes=GAUSSIAN.recipes.with_values(values))


@pytest.fixture(scope="module")
def data() -> Data:
    return pb.load_data("digits")


def of(method: Method = GAUSSIAN, data: Data | None = None, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    config = CompressionConfig(**options)
    recipe = method.recipes.with_values(config.recipe).small
    net = nn.Linear(2, 2)
    return identity(config, method, recipe, data or pb.load_data("digits"), net, trained=False, task=classification())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_itself_after_a_checkpoint(name: str, tmp_path: Path, data: Data) -> None:
    saved = of(METHODS[name], data)
    save_checkpoint(saved, tmp_path / "c.pt")
    assert difference(load_checkpoint(tmp_path / "c.pt"), of(METHODS[name], data)) is None
    json.dumps(saved)  # plain values all through


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (GAUSSIAN, changed({"temperature": 3.0}), "temperature"),
        (GAUSSIAN, changed({"infer.clip": None}), "infer.clip"),
        (GAUSSIAN, changed({"dense.lr_schedule": OneCycle(0.1)}), "dense.lr_schedule.peak"),
        (GAUSSIAN, replace(GAUSSIAN, threshold=0.5), "threshold"),
        (hbfp(), hbfp(weight=0.5), None),
        (hbfp(), hbfp(even=True), None),
        (bayes_l1(), bayes_l1(mix=0.9), None),
        (bayes_l1(), bayes_l1("gaussian"), None),
    ],
)
def test_settings_tell_methods_of_one_name_apart(one: Method, other: Method, name: str | None, data: Data) -> None:
    for saved, ours in ((one, other), (other, one)):
        found = difference(of(saved, data), of(ours, data))
        assert found is not None and (name is None or found[0] == name)
        assert found[1] != found[2] or name == "infer.clip"


def test_wording_and_device_do_not_tell_runs_apart(data: Data) -> None:
    reworded = replace(GAUSSIAN, title="another title", source="elsewhere", cut_where="there")
    assert difference(of(data=data), of(reworded, data, device="cpu")) is None


def test_augmentation_weights_and_normalisation_tell_runs_apart(data: Data) -> None:
    shifted = replace(data, train=replace(data.train, augment=Augment(shift=1)))
    assert (difference(of(data=data), of(data=shifted)) or ("",))[0] == "augment"
    other = data.with_normalisation([0.5], [0.5])
    assert (difference(of(data=data), of(data=other)) or ("",))[0] == "normalisation"
    nets = [nn.Linear(2, 2).to(torch.bfloat16) for _ in range(2)]
    config, recipe = CompressionConfig(), GAUSSIAN.recipes.small
    of_nets = [
        identity(config, GAUSSIAN, recipe, data, net, trained=True, task=classification()) for net in (*nets, nets[0])
    ]
    assert difference(of_nets[0], of_nets[2]) is None
    assert (difference(of_nets[0], of_nets[1]) or ("",))[0] == "given_weights"


def test_checkpoints_outlive_new_fields(data: Data) -> None:
    old = of(data=data)
    del old["method"], old["config"]["target_nonzero"]
    assert difference(old, of(data=data)) is None
    assert difference(old, of(data=data, seed=1)) == ("seed", 0, 1)


def test_numbers_of_numpy_are_numbers(data: Data) -> None:
    found = of(data=data, seed=np.int64(2), target_macs=np.float64(0.5))
    assert difference(found, of(data=data, seed=2, target_macs=0.5)) is None
    assert type(found["config"]["seed"]) is int and type(found["config"]["target_macs"]) is float
