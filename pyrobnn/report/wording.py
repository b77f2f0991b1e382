"""Numbers and settings as the report page writes them.

A space between a number and its unit does not break.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyrobnn.report.figures import as_dict, is_number

DASH = "–"


def text(value: Any) -> str:
    """The value as text; a dash where there is none."""
    return DASH if value is None or value == "" else str(value)


def flat(value: Any) -> str:
    """A setting as text: dictionaries as “a 1, b 2”, floats short."""
    if isinstance(value, Mapping):
        return ", ".join(f"{text(k)} {flat(v)}" for k, v in value.items() if v is not None) or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(flat(v) for v in value) or DASH
    return text(value)


def signed(value: float, digits: int, unit: str = "") -> str:
    """With its sign, none for what rounds to zero."""
    number = f"{abs(value):.{digits}f}"
    sign = "" if float(number) == 0 else "−" if value < 0 else "+"
    return f"{sign}{number}{unit}"


def percent(value: float) -> str:
    """A fraction in percent, with two decimals."""
    return f"{100 * value:.2f}\N{NO-BREAK SPACE}%"


def points(before: float, after: float) -> str:
    """Difference of two fractions in percentage points."""
    return signed(100 * (after - before), 2, "\N{NO-BREAK SPACE}points")


def relative(before: float, after: float) -> str:
    """Change in percent of what was before."""
    return signed(100 * (after / before - 1), 1, "\N{NO-BREAK SPACE}%") if before else DASH


def plain(before: float, after: float) -> str:
    """Difference of two figures without a unit."""
    return signed(after - before, 4)


def scaled(value: float) -> str:
    """Large counts as 2.293 M, small ones in full."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g}\N{NO-BREAK SPACE}{letter}"
    return f"{value:,.0f}"


def removed(report: Mapping[str, Any], key: str) -> str:
    """Of `reduction`: "−93.4 %"."""
    value = as_dict(report.get("reduction")).get(key, math.nan)
    return signed(-100 * value, 1, "\N{NO-BREAK SPACE}%") if is_number(value) else DASH
