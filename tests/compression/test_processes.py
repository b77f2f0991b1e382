"""A whole run in two processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.cli.main import main
from pyrobnn.data import Data
from pyrobnn.inference.loop import Loop


def few() -> Data:
    data = pb.load_data("digits")
    return replace(data, train=data.train.take(240), valid=data.valid.take(40), test=data.test.take(100))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 10),
    )


def run(out: Path | None, method: str, resume: bool = False) -> dict[str, Any]:
    # SGD: Adam's first steps go as far where a gradient is nothing but rounding.
    recipe: dict[str, Any] = {"batch_size": 24, "infer.guide_lr": 1e-3}
    for phase in ("dense", "infer", "tune"):
        recipe |= {f"{phase}.optimizer": "sgd", f"{phase}.lr": 0.02}
    result = pb.compress(
        net(), few(), method, target_macs=0.5, epochs=4, precision="fp32", same_noise=True, recipe=recipe, out=out,
        resume=resume, progress=False,
    )  # fmt: skip
    return {"plan": {name: list(units) for name, units in result.plan.keep.items()}, "report": result.report}


@pytest.mark.parametrize("method", ["ard", pytest.param("laplace", marks=pytest.mark.slow)])
def test_the_same_plan_and_figures(method: str, tmp_path: Path, in_processes: Callable[..., list[Any]]) -> None:
    whole = run(None, method)
    one, two = in_processes(2, run, tmp_path / "two", method)
    assert one["plan"] == two["plan"] == whole["plan"]
    assert one["report"] == two["report"] == json.loads((tmp_path / "two" / "report.json").read_text())
    assert (one["report"]["processes"], whole["report"]["processes"]) == (2, 1)
    for figures in ("dense", "compact"):
        assert one["report"][figures]["nll"] == pytest.approx(whole["report"][figures]["nll"], rel=1e-3)
    assert pb.load_run(tmp_path / "two").report["method"] == method


class Stop(Exception):
    """A run that ends in the middle of an epoch."""


def interrupted(out: Path, after: int) -> str:
    original, count = Loop.train_step, 0

    def train_step(self: Loop, *args: Any) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise Stop
        original(self, *args)

    Loop.train_step = train_step  # type: ignore[method-assign]
    try:
        run(out, "ard")
    except Stop:
        return "stopped"
    return "ended"


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_resumed_on_another_number(
    before: int, after: int, tmp_path: Path, in_processes: Callable[..., list[Any]]
) -> None:
    expected = run(None, "ard")
    assert set(in_processes(before, interrupted, tmp_path / "run", 17)) == {"stopped"}
    found = in_processes(after, run, tmp_path / "run", "ard", True)
    assert all(mine["plan"] == expected["plan"] for mine in found)
    assert found[0]["report"]["compact"]["nll"] == pytest.approx(expected["report"]["compact"]["nll"], rel=1e-3)


def taken() -> list[str]:
    said = []
    for out in (Path("/proc/nowhere/run"), Path(__file__)):
        with pytest.raises((pb.PyrobnnError, OSError)) as caught:
            pb.compress(net(), few(), out=out, epochs=3, target_macs=0.5, progress=False)
        said.append(str(caught.value))
    return said


def test_a_directory_that_the_first_cannot_have_ends_all(in_processes: Callable[..., list[Any]]) -> None:
    one, two = in_processes(2, taken)
    assert one == two and "is a file; give a directory" in one[1]


def accuracy(seed: int) -> float:
    result = pb.compress("small_cnn", "digits", target_macs=0.4, epochs=8, seed=seed, precision="fp32", progress=False)
    assert result.report["target"]["met"]
    return float(result.report["compact"]["accuracy"])


@pytest.mark.slow
def test_figures_are_within_seeds(in_processes: Callable[..., list[Any]]) -> None:
    """With noise of their own, and batch statistics of half a batch, on a network with BatchNorm."""
    alone = torch.tensor([accuracy(seed) for seed in range(3)])
    shared = torch.tensor([in_processes(2, accuracy, seed)[0] for seed in range(3)])
    print(alone.tolist(), shared.tolist())
    # Three standard errors of the difference of two means, where a mean of 599 images alone has 0.009.
    allowed = 3 * float(torch.sqrt((alone.var() + shared.var()) / 3 + 2 * 0.05 / 599 / 3))
    assert abs(float(alone.mean() - shared.mean())) < allowed


def saved(out: Path) -> None:
    pb.compress(net(), few(), target_macs=0.5, epochs=3, precision="fp32", progress=False).save(out)


def test_of_a_result_that_all_save_the_first_writes_the_files(
    tmp_path: Path, in_processes: Callable[..., list[Any]]
) -> None:
    in_processes(2, saved, tmp_path / "run")
    assert pb.load_compact(tmp_path / "run", factory=net)(few().example).shape == (2, 10)


def commanded(arguments: list[str]) -> Any:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_a_plan_that_cannot_be_read_is_told_once(
    few_digits: Callable[[Path, int, int], Path], tmp_path: Path, in_processes: Callable[..., list[Any]], capfd: Any
) -> None:
    few_digits(tmp_path, 100, 40)
    arguments = ["compress", "--model", "small_cnn", "--data", str(tmp_path / "few.npz"), "--from-scratch"]
    arguments += ["--plan", str(tmp_path / "none.json"), "--out", str(tmp_path / "run")]
    assert in_processes(2, commanded, arguments) == [2, 2]
    assert capfd.readouterr().err.count("error: cannot read the plan") == 1
