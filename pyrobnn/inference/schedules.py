"""Schedules of KL weight and learning rate, as functions of the progress of a fit in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pyrobnn.errors import ConfigError

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float = 1.0

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class WarmUp:
    """Linear from `start` to `end` over the first `fraction` of the fit, then constant.

    >>> WarmUp(0.5)(0.25)
    0.5
    """

    fraction: float
    start: float = 0.0
    end: float = 1.0

    def __call__(self, progress: float) -> float:
        if self.fraction <= 0:
            return self.end
        return self.start + (self.end - self.start) * min(1.0, progress / self.fraction)


@dataclass(frozen=True)
class OneCycle:
    """Linear up to 1 at `peak`, then a cosine down to `floor` (factor on the learning rate)."""

    peak: float = 0.2
    start: float = 0.1
    floor: float = 0.0

    def __call__(self, progress: float) -> float:
        if progress < self.peak:
            return self.start + (1 - self.start) * progress / self.peak
        t = (progress - self.peak) / (1 - self.peak)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, t)))


@dataclass(frozen=True)
class Cosine:
    """A cosine from 1 down to `floor` (factor on the learning rate)."""

    floor: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


NAMED: dict[str, Schedule] = {
    "constant": Constant(),
    "one_cycle": OneCycle(),
    "cosine": Cosine(),
}


def schedule(value: Schedule | float | str) -> Schedule:
    """A schedule from a number, a name (`constant`, `one_cycle`, `cosine`) or a function.

    Raises:
        ConfigError: an unknown name.
    """
    if isinstance(value, str):
        if value not in NAMED:
            raise ConfigError(f"unknown schedule {value!r}: use {', '.join(NAMED)}, a number or a function of progress")
        return NAMED[value]
    if callable(value):
        return value
    return Constant(float(value))
