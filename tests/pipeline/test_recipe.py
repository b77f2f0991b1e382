"""Recipes: what a method and a run may change in them."""

from __future__ import annotations

from typing import Any

import pytest

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.inference.schedules import OneCycle
from pyrobnn.methods.registry import METHODS
from pyrobnn.pipeline.recipe import DEEP, SMALL, recipes


def test_parts_are_changed_one_by_one() -> None:
    found = SMALL.with_values({"tune.lr": 0.5, "guide.init_scale": 0.2, "guide.scale_lr": 3.0, "rounds": 2})
    assert (found.tune.lr, found.rounds, found.guide) == (0.5, 2, {"init_scale": 0.2, "scale_lr": 3.0})
    assert found.tune.lr_schedule == SMALL.tune.lr_schedule and found.dense == SMALL.dense and SMALL.guide == {}


def test_a_method_changes_both_kinds_or_one() -> None:
    found = recipes(rounds=7, small={"kl_weight": 0.1}, deep={"kl_weight": 0.01})
    assert (found.small.rounds, found.deep.rounds) == (7, 7)
    assert (found.small.kl_weight, found.deep.kl_weight) == (0.1, 0.01)
    assert found.of(pb.nets.build("resnet20")) is found.deep
    assert found.of(pb.nets.build("small_cnn", in_channels=1, image_size=8)) is found.small


@pytest.mark.parametrize(
    ("values", "say"),
    [
        ({"tune.lrr": 1.0}, "no 'tune.lrr': did you mean lr"),
        ({"cuttout": 0.1}, "did you mean cutout"),
        ({"cutout": 1.0}, "cutout is a share"),
        ({"mix": "cut"}, "mixup, cutmix or empty"),
        ({"smoothing": 1.0}, "smoothing of a recipe"),
        ({"average": 1.5}, "average of a recipe"),
        ({"pass_share": 0.0}, "pass_share of a recipe is a share above 0"),
        ({"dense_share": 1.5}, "dense_share of a recipe is a share"),
        ({"tune.lr": "fast"}, "tune.lr of a recipe is a number"),
        ({"tune": 0.1}, "give one of them"),
        ({"temperature": 0}, "positive temperature"),
    ],
)
def test_what_is_no_recipe(values: dict[str, Any], say: str) -> None:
    with pytest.raises(ConfigError, match=say):
        SMALL.with_values(values)


def test_the_kl_rises_once_or_in_every_round() -> None:
    once = SMALL.with_values({"kl_warmup": 0.5, "kl_weight": 0.1})
    assert [once.kl_schedule(0)(p) for p in (0.0, 0.25, 1.0)] == pytest.approx([0.0, 0.05, 0.1])
    assert once.kl_schedule(1)(0.0) == 0.1
    assert once.with_values({"kl_rewarm": True}).kl_schedule(1)(0.0) == 0.0


def test_recipes_are_data() -> None:
    assert DEEP.identity() == DEEP.with_values({}).identity()
    assert DEEP.identity() != DEEP.with_values({"dense.lr_schedule": OneCycle(0.31)}).identity()
    assert all(isinstance(m.recipes.small.identity()["infer"]["lr"], float) for m in METHODS.values())
