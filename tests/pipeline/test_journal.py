"""A run as a list of steps, each done once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyrobnn.errors import CheckpointError
from pyrobnn.pipeline.journal import Carry, Journal

IDENTITY = {"seed": 1, "net": [["weight", [2, 3]]], "request": {"target": 0.5, "method": "m"}}


def test_steps_run_once_and_hand_on(tmp_path: Path) -> None:
    calls: list[str] = []

    def first(carry: Carry) -> Carry:
        calls.append("first")
        return {"a": torch.ones(2), "n": 1}

    def second(carry: Carry) -> Carry:
        calls.append("second")
        return {"n": carry["n"] + 1, "b": carry["a"] * 3}

    def road(journal: Journal) -> None:
        journal.step("first", first)
        journal.step("second", second)

    path = tmp_path / "checkpoint.pt"
    road(Journal(path, IDENTITY))
    again = Journal(path, IDENTITY, resume=True)
    road(again)
    assert calls == ["first", "second"] and again.done == ["first", "second"]
    assert again.carry["n"] == 2 and torch.equal(again.carry["b"], torch.full((2,), 3.0))


def test_an_interrupted_step_goes_on_from_its_fit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    journal = Journal(path, IDENTITY)
    journal.step("first", lambda carry: {"n": 1})

    def stopped(carry: Carry) -> Carry:
        journal.save_fit({"epoch": 3})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        journal.step("second", stopped)
    again = Journal(path, IDENTITY, resume=True)
    assert again.done == ["first"] and again.fit_state == {"epoch": 3} and again.carry == {"n": 1}
    again.step("second", lambda carry: {"n": 2})
    assert again.fit_state is None
    assert Journal(path, IDENTITY, resume=True).fit_state is None


def test_without_resume_or_file_it_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    Journal(path, IDENTITY).step("first", lambda carry: {"n": 1})
    assert Journal(path, IDENTITY).done == []
    assert Journal(tmp_path / "none.pt", IDENTITY, resume=True).done == []
    memory = Journal(None, IDENTITY)
    memory.step("first", lambda carry: {"n": 1})
    assert memory.carry == {"n": 1}


@pytest.mark.parametrize("change", [{"seed": 2}, {"net": [["weight", [2, 4]]]}, {"request": {"target": 0.4}}])
def test_another_run_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    Journal(path, IDENTITY).step("first", lambda carry: {"n": 1})
    with pytest.raises(CheckpointError, match="target=0.5" if "request" in change else next(iter(change))):
        Journal(path, {**IDENTITY, **change}, resume=True)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    journal = Journal(path, IDENTITY)
    journal.step("first", lambda carry: {"n": 1})

    def half(state: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("torch.save", half)
    with pytest.raises(OSError, match="disk full"):
        journal.step("second", lambda carry: {"n": 2})
    monkeypatch.undo()
    assert Journal(path, IDENTITY, resume=True).done == ["first"]
