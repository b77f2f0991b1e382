"""What a run says while it works."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pyrobnn.inference import progress
from pyrobnn.inference.progress import Progress, RunProgress, cut_line

ROW = {"epoch": 1, "loss": 1.0, "nll": 0.9, "kl": 0.1, "kl_weight": 1.0, "train_accuracy": 0.5, "valid_accuracy": 0.5}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written where there is no terminal, 80 columns wide."""
    found = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=found, width=80, highlight=False))
    return found


def epoch(title: str, seconds: float) -> None:
    with Progress(title, 10) as bar:
        bar.update(5, 1.0)
        bar.epoch({**ROW, "seconds": seconds}, 2)


def test_a_plan_then_one_line_an_epoch_with_the_time_left_of_the_whole_run(log: io.StringIO) -> None:
    with RunProgress({"dense": 2, "infer": 3, "tune": 4}, note="3 channel groups") as run:
        assert run.left() is None
        epoch("dense", 10.0)
        assert run.left() == 10 + 3 * 10 + 4 * 10  # phases that have not begun go at the pace of the last
        epoch("infer 1", 20.0)
        assert run.left() == 10 + 2 * 20 + 4 * 20
        epoch("retune", 1.0)
        assert run.left() == 10 + 2 * 20 + 3 * 1
    lines = log.getvalue().splitlines()
    assert lines[0] == "plan: dense 2, infer 3, tune 4 epochs; 3 channel groups"
    assert len(lines) == 4 and all(len(line) > 80 for line in lines[1:])  # not wrapped
    assert lines[1].startswith("dense 1/2  loss 1.0000") and lines[1].endswith("10.0 s  1:20 left")


def test_a_fit_outside_of_a_run_says_nothing_about_one(log: io.StringIO) -> None:
    with RunProgress({"dense": 2}):
        pass
    epoch("dense", 10.0)
    assert "left" not in log.getvalue()


def test_a_resumed_run_counts_what_is_done(log: io.StringIO) -> None:
    with RunProgress({"dense": 2, "tune": 4}, done={"dense": 2, "tune": 1}) as run:
        epoch("tune", 3.0)
        assert run.left() == 2 * 3.0
    assert "3 done before" in log.getvalue()


def test_a_fit_that_goes_on_in_its_middle_counts_its_epochs(log: io.StringIO) -> None:
    with RunProgress({"tune": 30}) as run, Progress("tune", 300, done=180) as bar:
        for number in (19, 20):
            bar.epoch({**ROW, "epoch": number, "seconds": 5.0}, 30)
            assert run.left() == (30 - number) * 5.0


def test_quiet_runs_say_nothing(log: io.StringIO) -> None:
    with RunProgress({"dense": 2}, enabled=False), Progress("dense", 10, enabled=False) as bar:
        bar.epoch({**ROW, "seconds": 1.0}, 2)
    assert log.getvalue() == ""


def test_a_cut_names_the_widths_that_changed() -> None:
    before = {f"layer{i}": 16 for i in range(9)}
    line = cut_line(2, before, {**before, **{f"layer{i}": 3 for i in range(8)}}, {"macs": 0.4, "params": 0.3}, None)
    assert line.startswith("cut 2: layer0 16→3, layer1 16→3") and "and 2 more" in line and "layer8" not in line
    assert cut_line(1, before, before, {"macs": 1.0, "params": 1.0}, None).startswith("cut 1: nothing;")


def test_a_terminal_shows_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    found = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=found, width=100, force_terminal=True, highlight=False))
    with RunProgress({"dense": 3}):
        epoch("dense", 60.0)
        with Progress("dense", 10) as bar:
            bar.update(5, 1.0)
    assert "0:00 left, run 2:00" in found.getvalue()
