"""Seeded runs give the figures they gave before: a change of structure changes none of them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

GOLDEN = runpy.run_path(str(Path(__file__).with_name("make.py")))
FAST = ("ard", "hbfp-budget")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in GOLDEN["CASES"]]
)
def test_a_seeded_report_is_what_it_was(name: str) -> None:
    here, there = GOLDEN["machine"](), json.loads(Path(__file__).with_name("machine.json").read_text())
    if here != there:
        pytest.skip(f"the reports were made on {there}, this is {here}: their last digits differ")
    differing = _differences(GOLDEN["kept"](name), GOLDEN["made"](name))
    assert not differing, differing


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Where what was in a report has changed; keys that were added are no change."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [line for key in before for line in _differences(before[key], now.get(key), f"{path}/{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for k, (a, b) in pairs for line in _differences(a, b, f"{path}/{k}")]
    return [] if before == now else [f"{path}: {before!r} before, {now!r} now"]
