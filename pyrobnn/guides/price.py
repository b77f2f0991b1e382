"""The lowest price (Lagrange multiplier) at which at most a given number of units is kept."""

from __future__ import annotations

from collections.abc import Callable


def lowest_price(size: Callable[[float], int], count: int, start: float, tolerance: float, tries: int) -> float:
    """Search for the lowest price at which `size`, which falls with it, is no more than `count`.

    Widens from `start` until `count` is bracketed, then bisects.

    Args:
        size: number of units at a price.
        count: the bound.
        start: price to begin with.
        tolerance: ends the search when the size is at most that share below the bound.
        tries: calls of `size` at the most.

    Returns:
        The lowest price found that holds the bound, never negative; the next one to try where none did.

    >>> round(lowest_price(lambda price: int(100 - 10 * price), 50, 0.0, 0.0, 30), 2)
    5.0
    """
    low: float | None = None
    high: float | None = None
    trial, step = start, 2.0
    for _ in range(tries):
        found = size(trial)
        if found > count:
            low = trial
        else:
            high = trial
            if found >= (1 - tolerance) * count or trial <= 0:
                break
        if high is None:
            trial, step = trial + step, 2 * step
        elif low is None:
            trial, step = max(0.0, trial - step), 2 * step
        else:
            trial = (low + high) / 2
    return trial if high is None else high
