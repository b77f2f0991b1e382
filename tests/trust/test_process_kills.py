"""SIGKILL of either of two processes at random moments: the other ends by itself, and the run goes on, on one or on two."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyrobnn as pb
from pyrobnn.io.processes import Processes

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def few(few_digits: Callable[[Path, int, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_digits(tmp_path_factory.mktemp("few"), 160, 40) / "few.npz"


def run(few: Path, out: Path, resume: bool, victim: int = -1, moment: int = 0) -> tuple[str, int]:
    """How the run ended in this process, and how often it has met the others; one kills itself right before or after that."""
    met, rank = 0, int(os.environ.get("RANK", "0"))

    def deadly(exchange: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal met
            met += 1
            if rank == victim and met == moment and moment % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            found = exchange(*arguments)
            if rank == victim and met == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("sum", "agreed", "each", "of_the_first"):
            patch.setattr(Processes, name, deadly(getattr(Processes, name)))
        try:
            pb.compress(
                "small_cnn", few, "ard", target_macs=0.5, epochs=4, seed=3, precision="fp32", batch_size=16, out=out,
                resume=resume, progress=False,
            )  # fmt: skip
        except pb.ProcessError as error:
            return str(error), met
    return "ended", met


def kept(out: Path) -> Any:
    return json.loads((out / "plan.json").read_text())["keep"]


@pytest.mark.slow
def test_kills_of_either_process(
    few: Path,
    tmp_path: Path,
    in_processes: Callable[..., list[Any]],
    size: Callable[[int, int], int],
    count: Callable[..., None],
) -> None:
    (_, meetings), other = in_processes(2, run, few, tmp_path / "whole", False)
    assert other == ("ended", meetings)
    rng, rounds = random.Random(0), size(2, 20)
    for number in range(rounds):
        out, victim = tmp_path / f"run{number}", number % 2
        said = in_processes(2, run, few, out, False, victim, rng.randrange(1, meetings), killed=victim)
        assert said[victim] is None and "another process of this run has ended" in said[1 - victim][0]
        # A run that was killed before it had begun leaves nothing, or an empty directory.
        resume, processes = (out / "checkpoint.pt").exists(), 2 if number % 4 < 2 else 1
        assert [how for how, _ in in_processes(processes, run, few, out, resume)] == ["ended"] * processes
        assert pb.load_run(out).report["target"]["met"]
        if processes == 2:
            assert kept(out) == kept(tmp_path / "whole")
    count("kills of one of two processes", kills=rounds, not_resumed=0)
