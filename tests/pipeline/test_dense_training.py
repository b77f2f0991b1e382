"""An undertrained dense network is said to be one: in the run, in the report, on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pyrobnn as pb
from pyrobnn.pipeline.dense_training import judged, last_gain, warning
from pyrobnn.report.headline import target_lines


@pytest.mark.parametrize("epochs", [2, 5, 30])
def test_on_a_straight_line_every_epoch_gains_alike(epochs: int) -> None:
    line = [7.0 - 0.1 * k for k in range(epochs)]
    assert last_gain(line) == pytest.approx(1 / (epochs - 1))
    assert last_gain([100 * loss - 30 for loss in line]) == pytest.approx(1 / (epochs - 1))  # any unit, any zero


def test_verdicts() -> None:
    assert judged([2.0, 0.5, 0.2, 0.19, 0.188])["undertrained"] is False
    assert judged([2.0, 1.5, 1.2, 1.0])["undertrained"] is True
    assert judged([2.0]) == {"epochs": 1, "last_gain": None, "undertrained": True}
    assert judged([1.0, 2.0])["undertrained"] and judged([1.0, float("nan")])["undertrained"]
    assert not judged([2.0, 1.0, 1.1])["undertrained"]  # it rose at the end: more epochs are not what it lacks
    assert warning(judged([2.0, 0.5, 0.2, 0.19])) is None and warning({}) is None
    said = warning(judged([2.0, 1.5, 1.0]))
    assert said is not None and "the last of its 3 epochs still brought 50 %" in said and "--epochs" in said


def test_a_run_of_few_epochs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = pb.load_data("digits")
    data = replace(full, train=full.train.take(128), valid=full.valid.take(40), test=full.test.take(40))
    options: dict[str, Any] = {"target_macs": 0.6, "epochs": 3, "precision": "fp32"}
    report = pb.compress("small_cnn", data, "l1", out=tmp_path, **options).report
    assert report["epochs"] == 3 and report["epochs_by_phase"]["dense"] == 1
    assert report["dense_training"] == {"epochs": 1, "last_gain": None, "undertrained": True}
    assert "the dense network is undertrained" in " ".join(capsys.readouterr().err.split())
    assert any(line["head"] == "Undertrained." for line in target_lines(report))
    assert "Undertrained." in (tmp_path / "report.html").read_text()
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    given = pb.compress(net, data, "l1", trained=True, progress=False, **options).report
    assert "dense_training" not in given  # nothing is known of it
