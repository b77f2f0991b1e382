"""What the dense network teaches, and on which images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import pyrobnn as pb
from pyrobnn.data import Augment, Data
from pyrobnn.inference import terms
from pyrobnn.inference.mixup import MixupDistillation
from pyrobnn.methods.registry import get_method
from pyrobnn.pipeline import context as run_module
from pyrobnn.pipeline import distillation


@pytest.fixture(scope="module")
def data() -> Data:
    return pb.load_data("digits")


def test_the_dense_network_is_evaluated_once_per_image(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []
    original = terms.teacher_output

    def output(teacher: Any, x: Any, autocast: Any) -> Any:
        evaluated.append(len(x))
        return original(teacher, x, autocast)

    monkeypatch.setattr(terms, "teacher_output", output)
    options: dict[str, Any] = {"target_macs": 0.5, "precision": "fp32", "progress": False}
    often = pb.compress("small_cnn", data, "ard", epochs=5, **options)
    assert sum(evaluated) == len(data.train) * data.train.num_views
    assert often.report["settings"]["teacher"] == "once per image"
    # Where its outputs do not fit, it is evaluated in every epoch of distillation.
    evaluated.clear()
    monkeypatch.setattr(distillation, "MOST_LOGITS", 10)
    rarely = pb.compress("small_cnn", data, "ard", epochs=5, **options)
    phases = rarely.report["epochs_by_phase"]
    assert sum(evaluated) == len(data.train) * phases["tune"] > 2 * len(data.train)
    assert rarely.report["settings"]["teacher"] == "every step"


@pytest.mark.parametrize(("shift", "asked"), [(0, "once per image"), (1, "once per image"), (2, "every step")])
def test_larger_shifts_have_answers_of_their_own(shift: int, asked: str, data: Data) -> None:
    shifted = replace(data, train=replace(data.train, augment=Augment(shift=shift)))
    result = pb.compress("small_cnn", shifted, "l1", epochs=4, target_macs=0.5, progress=False)
    assert result.report["settings"]["teacher"] == asked


def test_a_recipe_says_how_the_dense_network_teaches(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: dict[str, list[Any]] = {}
    original = run_module.fit

    def fit(*args: Any, title: str, terms: Any = (), **options: Any) -> Any:
        taught[title] = list(terms)
        return original(*args, title=title, terms=terms, **options)

    monkeypatch.setattr(run_module, "fit", fit)
    few = replace(data, train=data.train.take(256))
    options: dict[str, Any] = {"target_macs": 0.6, "epochs": 4, "precision": "fp32", "progress": False}
    usual = pb.compress("small_cnn", few, "l1", **options).report["settings"]
    assert "blends" not in usual and [type(term) for term in taught["tune"]] == [terms.Distillation]
    recipe = {"temperature": 1.5, "blends": 0.4}
    settings = pb.compress("small_cnn", few, "l1", recipe=recipe, **options).report["settings"]
    assert settings["temperature"] == 1.5 != usual["temperature"] and settings["blends"] == 0.4
    plain, between = taught["tune"]
    assert isinstance(between, MixupDistillation) and between.weight == 0.4
    assert plain.temperature == between.temperature == 1.5
    assert not any(
        isinstance(term, MixupDistillation) for title, found in taught.items() if title != "tune" for term in found
    )


def test_a_recipe_hides_a_part_of_every_image_while_tuning(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Data] = {}
    original = run_module.fit

    def fit(model: Any, guide: Any, data: Data, *, title: str, **options: Any) -> Any:
        seen[title] = data
        return original(model, guide, data, title=title, **options)

    monkeypatch.setattr(run_module, "fit", fit)
    few = replace(data, train=replace(data.train.take(256), augment=Augment(shift=1)))
    options: dict[str, Any] = {"target_macs": 0.6, "epochs": 6, "precision": "fp32", "progress": False}
    result = pb.compress("small_cnn", few, "l1", recipe={"cutout": 0.25}, **options)
    assert result.report["settings"]["cutout"] == 0.25 and result.report["settings"]["teacher"] == "every step"
    hidden = seen.pop("tune").train.augment
    assert hidden is not None and hidden.cutout == few.image_shape[1] // 4
    assert replace(hidden, cutout=0) == few.train.augment
    assert seen and all(other.train.augment == few.train.augment for other in seen.values())


def test_answers_are_not_kept_where_data_hide_squares_themselves(data: Data) -> None:
    few = replace(data, train=replace(data.train.take(256), augment=Augment(cutout=2)))
    result = pb.compress("small_cnn", few, "l1", epochs=4, target_macs=0.6, precision="fp32", progress=False)
    assert result.report["settings"]["teacher"] == "every step"


@pytest.mark.parametrize("share", [-0.1, 1.0, 8])
def test_a_cutout_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(pb.ConfigError, match="cutout is a share"):
        get_method("l1").recipes.with_values({"cutout": share})
