"""Where a run goes when tuning misses the accuracy that was asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyrobnn.pipeline.acceptance import finish, floor


class Stub:
    """A run whose tuning gives what it is told; networks are letters, from A (dense) to smaller ones."""

    def __init__(self, current: str, accepted: str, held: str, tuned: list[float]) -> None:
        def state(net: str) -> dict[str, Any]:
            return {} if net == "A" else {"plan": net}

        self.request = SimpleNamespace(max_drop=1.0)
        self.carry: dict[str, Any] = {"base": 0.95, "plan": current, "accepted": state(accepted), "held_state": state(held)}
        self.figures, self.did, self.said = tuned, [], []

    def tune(self, name: str, epochs: int) -> None:
        self.did.append((name, self.carry["plan"], epochs))
        self.carry["tuned"] = self.figures.pop(0)

    def restore(self, name: str, slot: str) -> None:
        self.carry |= self.carry[slot]

    def say(self, text: str) -> None:
        self.said.append(text)


GOOD, BAD = 0.945, 0.90


@pytest.mark.parametrize(
    ("current", "accepted", "held", "then"),
    [
        ("D", "C", "B", "B"),  # the last that held the drop comes first
        ("D", "C", "A", "C"),  # none but the dense one did: the last that came near
        ("C", "C", "B", "B"),  # a failed round was taken back already
        ("C", "C", "C", "C"),  # ... to the only one there is: tuning goes on
        ("B", "A", "A", "B"),
        ("C", "C", "A", "C"),
    ],
)
def test_a_miss_goes_to_a_larger_network_if_there_is_one(current: str, accepted: str, held: str, then: str) -> None:
    run: Any = Stub(current, accepted, held, [BAD, GOOD])
    finish(run, 6, 3)
    assert run.did == [("tune", current, 6), ("retune", then, 3)]
    assert ("back to a larger network" in run.said[0]) == (then != current) and len(run.said) == 1


def test_a_hit_needs_nothing_more() -> None:
    run: Any = Stub("C", "B", "B", [GOOD])
    finish(run, 6, 3)
    assert run.did == [("tune", "C", 6)] and not run.said and floor(run) == pytest.approx(0.94)


@pytest.mark.parametrize(("retune", "tuned"), [(0, [BAD]), (3, [BAD, BAD])])
def test_a_miss_is_said(retune: int, tuned: list[float]) -> None:
    run: Any = Stub("C", "B", "B", tuned)
    finish(run, 6, retune)
    assert "4.00 points short" in run.said[-1]
