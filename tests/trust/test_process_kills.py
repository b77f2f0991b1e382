"""SIGKILL to either of two processes at random moments: the other ends by itself, and the run is resumed on one or two."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrobnn as pb

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("few") / "few.npz"
    data = pb.load_data("digits")
    train, test = data.train.take(160), data.test.take(40)
    x = {"x_train": train.images.numpy(), "x_test": test.images.numpy()}
    np.savez(path, **x, y_train=train.labels.numpy(), y_test=test.labels.numpy())
    return path


def run(few: Path, out: Path, resume: bool) -> str:
    """How the run ended in this process."""
    try:
        pb.compress(
            "small_cnn", few, "ard", target_macs=0.5, epochs=4, seed=3, precision="fp32", batch_size=16, out=out,
            resume=resume, progress=False,
        )  # fmt: skip
    except pb.ProcessError as error:
        return str(error)
    return "ended"


def kept(out: Path) -> Any:
    return json.loads((out / "plan.json").read_text())["keep"]


def test_kills_of_either_process(
    few: Path,
    tmp_path: Path,
    in_processes: Callable[..., list[Any]],
    size: Callable[[int, int], int],
    count: Callable[..., None],
) -> None:
    start = time.monotonic()
    assert in_processes(2, run, few, tmp_path / "whole", False) == ["ended", "ended"]
    duration = time.monotonic() - start
    rng, kills = random.Random(0), 0
    rounds = size(2, 20)
    for number in range(rounds):
        out, victim = tmp_path / f"run{number}", number % 2
        said = in_processes(2, run, few, out, False, kill=(victim, rng.uniform(0.1, 0.95) * duration))
        if said[victim] is None and said[1 - victim] != "ended":
            kills += 1
            assert "another process of this run has ended" in said[1 - victim]
        resume = (out / "checkpoint.pt").exists()  # else it had not begun, or was at its end
        for processes in (2,) if number % 4 < 2 else (1,):
            if not (out / "manifest.json").exists():
                assert in_processes(processes, run, few, out, resume) == ["ended"] * processes
        assert pb.load_run(out).report["target"]["met"]
        if number % 4 < 2:
            assert kept(out) == kept(tmp_path / "whole")
    assert kills >= rounds // 2
    count("kills of one of two processes", kills=kills, runs=rounds, not_resumed=0)
