"""What a process is told by a launcher, and what is made of the end of another one."""

from __future__ import annotations

import pytest
import torch

from pyrobnn.errors import DataError, ProcessError
from pyrobnn.io import launch
from pyrobnn.io.processes import Processes, _lost, current, together


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


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:18849"), True),
        (RuntimeError("Timed out waiting 7200000ms for recv operation to complete"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (DataError("connection reset by peer"), False),
        (ValueError("gloo"), False),
    ],
)
def test_an_exchange_that_fails_says_that_a_process_is_gone(error: Exception, lost: bool) -> None:
    found = _lost(error)
    assert (found is not None) == lost
    if found is not None:
        assert "--resume" in str(found) and "\n" not in str(found)
