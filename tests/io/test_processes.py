"""What a process is told by a launcher, and how it joins the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyrobnn.errors import DataError, ProcessError
from pyrobnn.io import launch
from pyrobnn.io.processes import Processes, current, together


def test_one_process_is_the_identity() -> None:
    with together() as processes:
        assert processes.alone and processes.first and current() == Processes()
        values, module = torch.arange(3.0), torch.nn.Linear(2, 2)
        processes.sum(values)
        processes.of_the_first([values])
        assert torch.equal(values, torch.arange(3.0)) and processes.shared(module) is module
        assert processes.agreed("a") == "a" and processes.each(1) == [1]
        assert processes.first_does(lambda: 2) == processes.first_leads(lambda: 2) == 2


def test_what_a_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (launch.rank(), launch.world_size(), launch.local_rank(), launch.on_this_machine()) == (0, 1, 0, 1)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert (launch.rank(), launch.world_size(), launch.local_rank(), launch.on_this_machine()) == (5, 8, 1, 4)
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert launch.world_size() == 1


def test_one_process_says_what_all_of_them_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    error = DataError("no such folder")
    assert not launch.says(error)  # before they have joined, the first has the same error
    error.told_by_another = False  # type: ignore[attr-defined]
    assert launch.says(error)


def test_an_address_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ProcessError, match="MASTER_ADDR is not set: start them with torchrun"), together():
        pass


def again(port: int, attempt: int) -> bool:
    started = {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": attempt}
    os.environ.update({name: str(value) for name, value in started.items()})
    with pytest.raises(DataError) as caught, together() as processes:
        raise DataError(f"all of {processes.each(attempt)}")
    assert str(caught.value) == f"all of {[attempt] * 2}"
    return launch.says(caught.value)


def test_processes_that_are_started_again_do_not_meet_the_last_ones(in_processes: Callable[..., list[Any]]) -> None:
    """`torchrun --max-restarts`: its store outlives the processes, and one speaks in each attempt."""
    agent = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for attempt in (0, 1):
        assert sorted(in_processes(2, again, agent.port, attempt)) == [False, True]
