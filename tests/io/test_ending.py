"""What is made of the end of another process: one line, whatever comes first."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.errors import DataError
from pyrobnn.inference.callbacks import Callback, FitState
from pyrobnn.io.ending import of_another
from pyrobnn.io.processes import current, together


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:18849"), True),
        (RuntimeError("Timed out waiting 7200000ms for recv operation to complete"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (torch.distributed.DistNetworkError("Failed to recv, got 0 bytes. Did the remote server shutdown?"), True),
        (torch.distributed.DistStoreError("wait timeout after 1000ms, keys: /a"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (DataError("connection reset by peer"), False),
        (ValueError("gloo"), False),
    ],
)
def test_an_exchange_that_fails_says_that_a_process_is_gone(error: Exception, lost: bool) -> None:
    found = of_another(error)
    assert (found is not None) == lost
    if found is not None:
        assert "--resume" in str(found) and "\n" not in str(found)


def signal_in_the_clean_up() -> str:
    destroy = torch.distributed.destroy_process_group

    def late() -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # of a launcher that has seen the other die
        destroy()

    torch.distributed.destroy_process_group = late
    try:
        with together() as processes:
            processes.each(0)
            if not processes.first:
                os.kill(os.getpid(), signal.SIGKILL)
            processes.each(1)
    except pb.ProcessError as error:
        before = signal.getsignal(signal.SIGTERM)
        return f"{error} {before is signal.SIG_DFL}"
    return "went on"


def test_a_signal_that_comes_after_the_news_keeps_nobody_from_telling_it(
    in_processes: Callable[..., list[Any]],
) -> None:
    said, _ = in_processes(2, signal_in_the_clean_up, killed=1)
    assert "another process of this run has ended" in said and said.endswith("True")


class FailsInOne(Callback):
    """An error of its own in the last process, in the middle of a fit."""

    def on_batch_end(self, state: FitState) -> None:
        if current().rank == current().size - 1:
            raise DataError("a damaged picture")


def caught() -> tuple[str, list[str]]:
    data = pb.load_data("digits")
    model = pb.BayesianModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), pb.priors.Gaussian(1.0), data_size=1078)
    try:
        pb.fit(
            model,
            pb.guides.MeanField(model),
            data,
            epochs=1,
            precision="fp32",
            callbacks=[FailsInOne()],
            progress=False,
        )
    except pb.PyrobnnError as error:  # which a script may keep, and go on
        with together() as processes:
            return str(error), processes.each(type(error).__name__)
    return "went on", []


@pytest.mark.parametrize("size", [2, 4])
def test_an_error_that_one_catches_ends_the_wait_of_the_others(
    size: int, in_processes: Callable[..., list[Any]]
) -> None:
    *others, last = in_processes(size, caught)
    assert last == ("a damaged picture", ["ProcessError"] * (size - 1) + ["DataError"])
    assert all("another process of this run has ended" in said and names == last[1] for said, names in others)


def killed_while_joining() -> str:
    if os.environ["RANK"] == "0":

        def dies(*_: Any, **__: Any) -> None:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

        torch.distributed.init_process_group = dies
    try:
        with together():
            return "went on"
    except pb.ProcessError as error:
        return f"{error} {error.told_by_another}"  # type: ignore[attr-defined]


def test_the_first_dies_while_others_join(in_processes: Callable[..., list[Any]]) -> None:
    _, said = in_processes(2, killed_while_joining, killed=0)
    assert "another process of this run has ended" in said and said.endswith("False")
