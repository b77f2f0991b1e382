"""The smallest network that holds a drop, looked for in both directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.pipeline import search as search_module
from pyrobnn.pipeline import stages
from pyrobnn.pipeline.search import next_size, search


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(200), valid=full.valid.take(50), test=full.test.take(60))


@pytest.mark.parametrize("epochs", [0, 1, 2, 5, 8, 19, 40])
def test_attempts_spend_what_there_is(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[int] = []
    monkeypatch.setattr(search_module, "attempt", lambda number, share: spent.append(share))
    stages = search(epochs)
    assert sum(spent) == (epochs if epochs > 1 else 0) and all(share >= 2 for share in spent) and len(spent) <= 4
    assert len(stages) == len(spent) + 1 and stages[-1].name == "settle"


def test_halves_of_the_way_find_the_size() -> None:
    """Against networks that hold the drop from a size on."""
    for line in (0.05, 0.2, 0.34, 0.6):
        best, missed, held = 1.0, 0.02, False
        for _ in range(12):
            size = next_size(best, missed, held=held)
            if size is None:
                break
            best, missed, held = (size, missed, True) if size >= line else (best, size, held)
        assert missed < line <= best < line / 0.94
    assert next_size(0.5, 0.0, held=True) == pytest.approx(0.35)  # nothing has missed yet: further down


# What tuning is made to give, in turn, and whether the result holds the drop.
@pytest.mark.parametrize("method", ["gaussian", "rbp", "turbo-vbi"])
@pytest.mark.parametrize(
    ("figures", "met"), [((1.0, 1.0, 0.0), True), ((0.0, 1.0, 0.0), True), ((0.0, 0.0, 0.0), True)]
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:nothing was cut")
def test_what_held_is_what_is_returned(
    method: str, figures: tuple[float, ...], met: bool, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Any] = []
    original = search_module.tuned

    def fake(context: Any, state: Any, name: str, seed: str, epochs: int) -> Any:
        after = original(context, state, name, seed, 1)
        plans.append(after.plan)
        return replace(after, tuned=state.base + 1.0 if figures[len(plans) - 1] else 0.0)

    monkeypatch.setattr(search_module, "tuned", fake)
    monkeypatch.setattr(stages, "tuned", fake)
    monkeypatch.setattr("pyrobnn.pipeline.acceptance.recovered", lambda *given: True)
    options: dict[str, Any] = {"max_drop": 1.0, "epochs": 24, "precision": "fp32", "progress": False}
    monkeypatch.setattr(search_module, "MOST_ATTEMPTS", 2)
    result = pb.compress("small_cnn", data, method, **options)
    assert len(plans) <= 3 and result.report["target"]["met"] is met
    held = [plan for plan, good in zip(plans, figures, strict=False) if good]
    if held:
        assert result.plan == held[-1]
    else:
        assert result.plan.is_full and result.report["compact"]["accuracy"] == result.report["dense"]["accuracy"]
    for name, channel in result.posterior.channels.items():
        assert channel.kept.nonzero().flatten().tolist() == result.plan.keep[name]
