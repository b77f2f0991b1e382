from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pyrobnn import nets
from pyrobnn.channels import PruningPlan, channel_groups
from pyrobnn.errors import PlanError


def plan() -> PruningPlan:
    return PruningPlan(
        keep={"a": [3, 0, 1], "b": [1]},
        channels={"a": 5, "b": 2},
        score={"a": [5.0, 4.0, 0.5, math.inf, 0.1], "b": None},
        reason={"a": "snr > 1"},
    )


def test_round_trip(tmp_path: Path) -> None:
    first = plan()
    assert first.keep["a"] == [0, 1, 3]
    assert PruningPlan.from_json(first.to_json()) == first
    path = tmp_path / "plan.json"
    first.save(path)
    first.save(path)
    assert PruningPlan.load(path) == first
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert first.widths() == {"a": 3, "b": 1} and not first.is_full


def test_compose_speaks_of_the_original_net() -> None:
    later = PruningPlan({"a": [0, 2]}, {"a": 3}, {"a": [9.0, 8.0, 7.0]}, {"a": "round 2"})
    both = plan().compose(later)
    assert both.keep == {"a": [0, 3], "b": [1]}
    assert both.channels == {"a": 5, "b": 2}
    assert both.score["a"] == [9.0, 8.0, 0.5, 7.0, 0.1]
    assert both.reason == {"a": "round 2"}
    last = PruningPlan({"a": [1]}, {"a": 2})
    assert plan().compose(later).compose(last) == plan().compose(later.compose(last))
    with pytest.raises(PlanError, match="made for 4 units of 'a', this plan leaves 3"):
        plan().compose(PruningPlan({"a": [0]}, {"a": 4}))


def test_compose_with_a_group_that_is_new() -> None:
    assert plan().compose(PruningPlan({"c": [2]}, {"c": 3}, {"c": [0.0, 1.0, 2.0]})).score["c"] == [
        0.0,
        1.0,
        2.0,
    ]


def test_full() -> None:
    table = channel_groups(nets.lenet5(), torch.randn(2, 1, 28, 28), try_cut=False)
    whole = PruningPlan.full(table)
    assert whole.is_full and whole.widths() == table.widths() and whole.compose(whole) == whole


@pytest.mark.parametrize(
    ("keep", "channels", "message"),
    [
        ({"a": []}, {"a": 4}, "keeps nothing of 'a'"),
        ({"a": [4]}, {"a": 4}, r"expected units 0\.\.3"),
        ({"a": [-1]}, {"a": 4}, r"expected units 0\.\.3"),
        ({"a": [1, 1]}, {"a": 4}, "named twice"),
        ({"a": [0.5]}, {"a": 4}, "whole unit indices"),
        ({"a": [True]}, {"a": 4}, "whole unit indices"),
        ({"a": "01"}, {"a": 4}, "expected a list"),
        ({"a": [0]}, {}, "only one has 'a'"),
        ({}, {"a": 4}, "only one has 'a'"),
    ],
)
def test_nonsense(keep: dict[str, list[int]], channels: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        PruningPlan(keep, channels)


def test_scores_that_do_not_fit() -> None:
    with pytest.raises(PlanError, match="expected 4 scores for 'a', got 1"):
        PruningPlan({"a": [0]}, {"a": 4}, {"a": [1.0]})
    with pytest.raises(PlanError, match="a reason for 'b'"):
        PruningPlan({"a": [0]}, {"a": 4}, {}, {"b": "why"})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "keep": [1]}', '{"schema": 1, "keep": {"a": ["x"]}}',
     '{"schema": 1, "keep": {"a": [0]}, "channels": {"a": "many"}}',
     '{"schema": 1, "keep": {"a": [0]}, "channels": {"a": 1}, "score": {"a": [[]]}}'],
)  # fmt: skip
def test_damaged_text(text: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        PruningPlan.from_json(text)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError):
        PruningPlan.load(tmp_path / "plan.json")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read the plan"):
        PruningPlan.load(tmp_path / "no.json")
