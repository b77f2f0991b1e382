"""Runs that are killed end as one never stopped."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import pyrobnn as pb
from pyrobnn import cli
from pyrobnn.data import Data
from pyrobnn.inference.fit import Loop
from pyrobnn.io.checkpoint import load_checkpoint, save_checkpoint
from pyrobnn.pipeline.state import State
from pyrobnn.pipeline.store import RunStore
from pyrobnn.report.report import steady

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short


class Killed(BaseException):
    """What nobody catches, like the end of a process."""


@pytest.fixture
def plain_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures in the pages of runs that are only compared by their numbers."""
    monkeypatch.setattr("pyrobnn.compression.store.standard_figures", lambda *args: {})


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original, count = Loop.train_step, 0

    def train_step(self: Loop, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(Loop, "train_step", train_step)


STEPS = 17  # in an epoch: 270 images by 16


# In the dense, the first and second posterior and the tuning phase, in the middle of an epoch and at its start.
@pytest.mark.parametrize("steps", [[7], [STEPS + 3], [2 * STEPS + 1], [3 * STEPS + 9, 4], [5 * STEPS]])
def test_a_killed_run_ends_like_one_never_stopped(
    steps: list[int],
    npz: Path,
    tmp_path: Path,
    finished: tuple[Path, pb.Result],
    plain_pages: None,
    short: dict[str, Any],
) -> None:
    out = tmp_path / "run"
    for step in steps:  # the second kill hits the resumed run
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, step)
            pb.compress("small_cnn", npz, target_macs=0.4, out=out, resume=out.exists(), **short)
        assert not (out / "report.json").exists()
    resumed = pb.compress("small_cnn", npz, target_macs=0.4, out=out, resume=True, **short)
    whole = finished[1]
    assert steady(json.loads((out / "report.json").read_text())) == steady(whole.report)
    for name, value in whole.compact.state_dict().items():
        assert torch.equal(resumed.compact.state_dict()[name], value), name
    assert resumed.plan.to_json() == whole.plan.to_json()


@pytest.mark.parametrize("where", ["summarize", "check_cut", "measure"])
def test_a_run_killed_between_fits(
    where: str, npz: Path, tmp_path: Path, finished: tuple[Path, pb.Result], plain_pages: None, short: dict[str, Any]
) -> None:
    module = "pyrobnn.compression.result" if where == "measure" else "pyrobnn.pipeline.rounds"

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(importlib.import_module(module), where, killed)
        pb.compress("small_cnn", npz, target_macs=0.4, out=tmp_path / "run", **short)
    pb.compress("small_cnn", npz, target_macs=0.4, out=tmp_path / "run", resume=True, **short)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert steady(report) == steady(finished[1].report)


@pytest.fixture(scope="module")
def drop(short: dict[str, Any]) -> dict[str, Any]:
    return {**short, "epochs": 10, "max_drop": 2.0}


@pytest.fixture(scope="module")
def within_drop(data: Data, drop: dict[str, Any]) -> pb.Result:
    """A run to a validation accuracy that nobody stopped."""
    return pb.compress("small_cnn", data, **drop)


@pytest.mark.parametrize("where", ["cut 1", "accept 2", "tune"])
def test_a_killed_run_within_a_drop(
    where: str, data: Data, tmp_path: Path, drop: dict[str, Any], within_drop: pb.Result, plain_pages: None
) -> None:
    """The verdicts of earlier rounds are not judged again by a later network."""
    original = RunStore.write

    def write(self: RunStore, number: int, name: str, state: State) -> None:
        original(self, number, name, state)
        if name == where:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunStore, "write", write)
        pb.compress("small_cnn", data, out=tmp_path / "run", **drop)
    resumed = pb.compress("small_cnn", data, out=tmp_path / "run", resume=True, **drop)
    assert steady(resumed.report) == steady(within_drop.report)


@pytest.mark.slow
def test_a_judgement_is_not_made_again(
    data: Data, tmp_path: Path, drop: dict[str, Any], plain_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third round fails; a run killed right then must not fail the second on resuming."""
    judged: list[float] = []

    def recovered(accuracy: float, *others: Any) -> bool:
        judged.append(accuracy)
        return len(judged) % 2 == 1  # the second that is judged, the third round, fails

    monkeypatch.setattr("pyrobnn.pipeline.acceptance.recovered", recovered)
    whole = pb.compress("small_cnn", data, **drop)
    original = RunStore.write

    def write(self: RunStore, number: int, name: str, state: State) -> None:
        original(self, number, name, state)
        if name == "accept 3":
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunStore, "write", write)
        pb.compress("small_cnn", data, out=tmp_path / "run", **drop)
    resumed = pb.compress("small_cnn", data, out=tmp_path / "run", resume=True, **drop)
    assert len(judged) == 4 and judged[:2] == judged[2:]
    assert steady(resumed.report) == steady(whole.report)
    for name, channel in resumed.posterior.channels.items():
        assert channel.kept.nonzero().flatten().tolist() == resumed.plan.keep[name]


def test_seconds_count_the_interrupted_parts(
    npz: Path, tmp_path: Path, plain_pages: None, short: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3 * STEPS)
        pb.compress("small_cnn", npz, target_macs=0.4, out=out, **short)
    state = load_checkpoint(out / "checkpoint.pt")
    assert state["seconds"] > 0
    state["seconds"] += 1000.0
    save_checkpoint(state, out / "checkpoint.pt")
    resumed = pb.compress("small_cnn", npz, target_macs=0.4, out=out, resume=True, **short)
    assert 1000 < resumed.report["seconds"] < 1300


def test_resuming_a_finished_run_trains_nothing(
    npz: Path, finished: tuple[Path, pb.Result], monkeypatch: pytest.MonkeyPatch, short: dict[str, Any]
) -> None:
    out, first = finished
    kill_at(monkeypatch, 1)
    again = pb.compress("small_cnn", npz, target_macs=0.4, out=out, resume=True, **short)
    assert steady(again.report) == steady(first.report)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"epochs": 6},
        {"target_macs": 0.5},
        {"min_channels": 2},
        {"protect": ["fc1"]},
        {"recipe": {"temperature": 3.0}},
    ],
)
def test_a_resume_with_other_settings_is_refused(
    change: dict[str, Any], npz: Path, finished: tuple[Path, pb.Result], short: dict[str, Any]
) -> None:
    out, _ = finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    settings = {**short, "target_macs": 0.4, **change}
    name = next(iter(change))
    with pytest.raises(pb.CheckpointError, match=f"belongs to a run with {name}[.=]"):
        pb.compress("small_cnn", npz, out=out, resume=True, **settings)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_process_killed_by_the_system(npz: Path, tmp_path: Path, finished: tuple[Path, pb.Result]) -> None:
    out = tmp_path / "run"
    arguments = [
        "compress", "--model", "small_cnn", "--data", str(npz), "--target-macs", "0.4", "--epochs", "5",
        "--method", "gaussian", "--seed", "3", "--precision", "fp32", "--out", str(out),
    ]  # fmt: skip
    script = "import sys, pyrobnn.cli as c; c.main(sys.argv[1:])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--resume"])
    assert stop.value.code == 0
    report = json.loads((out / "report.json").read_text())
    if torch.get_num_threads() == 1:
        assert steady(report) == steady(finished[1].report)
