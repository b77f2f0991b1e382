"""Which network is accepted, and where a run goes when tuning misses the accuracy that was asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import pyrobnn as pb
from pyrobnn.pipeline import acceptance, training
from pyrobnn.pipeline.stages import accept, retune
from pyrobnn.pipeline.state import State

WIDTHS = {"A": 8, "B": 6, "C": 4, "D": 2}  # networks are letters, from A (dense) to smaller ones


def state(net: str, **figures: Any) -> State:
    plan = pb.PruningPlan({"g": list(range(WIDTHS[net]))}, {"g": 8})
    rounds = () if net == "A" else ({"round": 1},)
    return State(
        dense=nn.Linear(1, 1),
        net=nn.Linear(1, 1),
        plan=plan,
        rounds=rounds,
        base=0.95,
        base_error=acceptance.resolution(0.95, 400),
        **figures,
    )


def letter(found: State) -> str:
    return next(name for name, width in WIDTHS.items() if len(found.plan.keep["g"]) == width)


class Stub:
    """A context whose store has a network per name; tuning gives what it is told."""

    def __init__(self, accepted: str, held: str) -> None:
        self.config = SimpleNamespace(max_drop=1.0)
        self.data = SimpleNamespace(valid=range(400))
        self.table: Any = SimpleNamespace(widths=lambda: {"g": 8}, names=["g"])
        self.store = SimpleNamespace(state=lambda name: state({"accepted": accepted, "held": held}[name]))
        self.said: list[str] = []

    def point(self, base: float) -> float:
        return 1.0

    def say(self, text: str) -> None:
        self.said.append(text)


GOOD, BAD = 0.945, 0.90


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """What is tuned a second time, as (stage, network, epochs); it ends well."""
    did: list[tuple[str, str, int]] = []

    def fake(context: Any, now: State, name: str, seed: str, epochs: int) -> State:
        did.append((name, letter(now), epochs))
        return replace(now, tuned=GOOD)

    monkeypatch.setattr(training, "tuned", fake)
    monkeypatch.setattr(pb.PruningPlan, "full", classmethod(lambda cls, table: cls({"g": list(range(8))}, {"g": 8})))
    return did


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
def test_a_miss_goes_to_a_larger_network_if_there_is_one(
    current: str, accepted: str, held: str, then: str, tuned: list[tuple[str, str, int]]
) -> None:
    context: Any = Stub(accepted, held)
    after = retune(3).run(context, state(current, tuned=BAD, accepted="accepted", held="held"))
    assert tuned == [("retune", then, 3)] and letter(after) == then
    assert ("back to a larger network" in context.said[0]) == (then != current) and len(context.said) == 1


def test_a_hit_needs_nothing_more(tuned: list[tuple[str, str, int]]) -> None:
    context: Any = Stub("B", "B")
    retune(3).run(context, state("C", tuned=GOOD, accepted="accepted", held="held"))
    assert not tuned and not context.said


def test_a_miss_is_said(tuned: list[tuple[str, str, int]]) -> None:
    context: Any = Stub("B", "B")
    retune(0).run(context, state("C", tuned=BAD, accepted="accepted", held="held"))
    assert not tuned and "4.00 points short" in context.said[-1]


def test_a_lost_round_goes_back_and_ends_the_rounds(tuned: list[tuple[str, str, int]]) -> None:
    context: Any = Stub("B", "A")
    now = state("C", recovered=0.90, accepted="accepted", held="held", spent={"infer": 7})
    after = accept(2).run(context, now)
    assert letter(after) == "B" and after.stopped and after.spent == {"infer": 7}
    near = accept(2).run(context, replace(now, recovered=0.935))  # tuning may bring it back
    assert letter(near) == "C" and not near.stopped and (near.accepted, near.held) == ("infer 3", "held")
    good = accept(2).run(context, replace(now, recovered=0.945))
    assert (good.accepted, good.held) == ("infer 3", "infer 3")
    first = accept(0).run(context, replace(now, recovered=0.1))  # nothing was cut yet
    assert not first.stopped and first.accepted == "infer 1"


def test_numbers() -> None:
    assert acceptance.floor(0.95, 1.0) == pytest.approx(0.94) and acceptance.floor(0.95, None) == 0.95
    assert acceptance.resolution(0.9, 100) == pytest.approx(100 * math.sqrt(0.9 * 0.1 / 100))
    assert 0 < acceptance.resolution(1.0, 100) < 1  # all right says little on so few images
    assert acceptance.holds(0.94, 0.95, 1.0) and not acceptance.holds(0.939, 0.95, 1.0)
    error = acceptance.resolution(0.95, 400)
    near = 0.95 - (1.0 + acceptance.SLACK + acceptance.SURE * error) / 100
    assert acceptance.recovered(near + 1e-9, 0.95, 1.0, error) and not acceptance.recovered(
        near - 1e-9, 0.95, 1.0, error
    )
    assert acceptance.worth_trying(0.95, 1.0, error) == pytest.approx(0.94 - (acceptance.LOSS_PER_CUT + error) / 100)
