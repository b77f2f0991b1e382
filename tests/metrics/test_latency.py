"""Two networks timed in turn, by a clock that they move themselves."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from pyrobnn.metrics import latency
from pyrobnn.metrics.latency import relative_latency, smallest_batch, stopwatch


class Taking(nn.Module):
    """Its passes take these seconds, one after the other."""

    now = 0.0

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.seconds, self.calls = seconds, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        Taking.now += self.seconds[self.calls % len(self.seconds)]
        self.calls += 1
        return x


def test_a_share_is_a_ratio_of_medians(monkeypatch: Any) -> None:
    monkeypatch.setattr(latency, "stopwatch", lambda device: lambda: Taking.now)
    one, base = Taking(1.0, 3.0, 1.0, 50.0, 2.0).train(), Taking(4.0)
    assert relative_latency(one, base, torch.zeros(1, 2), repeats=5, warmup=0) == pytest.approx(2.0 / 4.0)
    assert one.training and one.calls == base.calls == 5


def test_a_network_that_squeezes_is_timed_on_two_examples() -> None:
    class Squeezing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = x.squeeze().sum(1)
            return found

    assert smallest_batch(Squeezing(), torch.zeros(4, 3)) == 2 and smallest_batch(nn.Identity(), torch.zeros(4, 3)) == 1


def test_the_clock_of_one_thread_stands_still_while_it_waits() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        clock = stopwatch(torch.device("cpu"))
        start = clock()
        time.sleep(0.05)
        assert clock() - start < 0.04
        torch.set_num_threads(2)
        clock = stopwatch(torch.device("cpu"))
        start = clock()
        time.sleep(0.05)
        assert clock() - start >= 0.05
    finally:
        torch.set_num_threads(threads)
