"""SIGKILL at random moments and at every kind of file event: the resumed run ends as one never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyrobnn as pb
from pyrobnn.io.manifest import MANIFEST, RunFiles
from pyrobnn.report.report import steady

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def few(few_digits: Callable[[Path, int, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_digits(tmp_path_factory.mktemp("few"), 100, 40) / "few.npz"


def run(few: Path, out: Path, method: str, *, resume: bool) -> None:
    pb.compress(
        "small_cnn", few, method, target_macs=0.5, epochs=4, seed=3, precision="fp32", out=out, resume=resume,
        progress=False,
    )  # fmt: skip


def in_child(
    few: Path, out: Path, method: str, *, resume: bool, event: int | None = None, seconds: float | None = None
) -> bool:
    """One run in a process of its own, killed at its file event of that number or after that time.

    Returns:
        Whether it was killed; False if it had ended before.
    """
    child = os.fork()
    if child == 0:
        try:
            if event is not None:
                kill_at(event)
            warnings.simplefilter("ignore")
            run(few, out, method, resume=resume)
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the run failed"
    return False


def kill_at(event: int) -> None:
    """Die right before or right after the file event of that number: a flush, a rename, a removal."""
    seen = 0

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == event and event % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    for name in ("fsync", "replace", "unlink", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))


def result_of(out: Path) -> dict[str, Any]:
    """What must be equal, read through the checks of the manifest."""
    with RunFiles(out) as files:
        listed = json.loads((out / MANIFEST).read_text())["files"]
        for name in listed:
            files.read(name)
        assert set(listed) == {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} - {MANIFEST}
        report = steady(files.read_json("report.json"))
        return {"report": report, "plan": files.read_json("plan.json"), "net": files.read("compact.safetensors")}


@pytest.mark.parametrize("method", ["gaussian", "rbp", pytest.param("hbfp", marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_kills(
    method: str, few: Path, tmp_path: Path, size: Callable[[int, int], int], count: Callable[..., None]
) -> None:
    rng, kills, rounds = random.Random(method), 0, size(1, 12)
    if method != "gaussian" and rounds == 1:
        pytest.skip("in the long form")
    start = time.monotonic()
    run(few, tmp_path / "whole", method, resume=False)
    duration = time.monotonic() - start
    expected = result_of(tmp_path / "whole")
    for number in range(rounds):
        out = tmp_path / f"run{number}"
        for attempt in range(3):  # killed up to three times, the last of them in the resumed run
            if number % 3 == 2:
                killed = in_child(few, out, method, resume=attempt > 0, seconds=rng.uniform(0.05, 1.0) * duration)
            else:
                killed = in_child(few, out, method, resume=attempt > 0, event=rng.randrange(1, 45))
            kills += killed
            if not killed:
                break
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    pb.load_compact(out)
            except pb.PyrobnnError as error:
                assert len(str(error).splitlines()) == 1
        assert not in_child(few, out, method, resume=True)
        assert result_of(out) == expected, f"{method}, run {number}"
        assert not list(out.rglob(".*")), "temporaries are left"
    count("kills", kills=kills, runs=rounds, that_ended_otherwise=0)
