"""How large the trust tests are, and what they counted.

`PYROBNN_TRUST=full` is `make trust`: thousands of cases, under 25 minutes. Without it a sample of the same cases runs
with the other tests. Everything is seeded, so a failure comes back.

`PYROBNN_TRUST_RESULT` names a JSON file for the counts (`make trust` writes `benchmarks/results/trust.json`). A run of
some of the files replaces the counts of these.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyrobnn.report.report import versions

FULL = os.environ.get("PYROBNN_TRUST", "short") == "full"
RESULT = os.environ.get("PYROBNN_TRUST_RESULT")
_TOTAL: Counter[tuple[str, str]] = Counter()
_FAILED: list[str] = []
_BEGUN = time.perf_counter()


@pytest.fixture
def size() -> Callable[[int, int], int]:
    """`size(short, full)`: how many cases to try."""
    return lambda short, full: full if FULL else short


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`count("kills", done=3, differing=0)`: numbers for the summary at the end."""

    def note(what: str, **numbers: int) -> None:
        record_property(f"trust:{what}", numbers)

    return note


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The limit is there for what hangs; on a machine with other work a long test takes many times its seconds."""
    for item in items if FULL else ():
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(3600), append=False)


def pytest_runtest_logreport(report: Any) -> None:
    if report.failed and "trust/" in report.nodeid:
        _FAILED.append(report.nodeid)
    if report.when == "call":
        for key, numbers in report.user_properties:
            if key.startswith("trust:"):
                for name, number in numbers.items():
                    _TOTAL[key.removeprefix("trust:"), name] += number


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _TOTAL:
        return
    terminalreporter.section(f"trust, {'full' if FULL else 'short'} form")
    for what in dict.fromkeys(what for what, _ in _TOTAL):
        parts = [f"{number:,} {name.replace('_', ' ')}" for (of, name), number in _TOTAL.items() if of == what]
        terminalreporter.write_line(f"{what}: {', '.join(parts)}")
    if FULL and RESULT:
        _write(Path(RESULT))


def _write(path: Path) -> None:
    """The counts of this run, with those of kinds that an earlier one counted; tests that failed are counted nowhere.

    Seconds and versions are those of the last run.
    """
    found = json.loads(path.read_text()) if path.exists() else {"counts": {}, "failed": []}
    for what in dict.fromkeys(what for what, _ in _TOTAL):
        found["counts"][what] = {name: number for (of, name), number in _TOTAL.items() if of == what}
    found["failed"] = sorted(_FAILED)
    found |= {"seconds": round(time.perf_counter() - _BEGUN), "device": "cpu", "versions": versions()}
    path.write_text(json.dumps(found, indent=1) + "\n")
