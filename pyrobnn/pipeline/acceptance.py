"""When a smaller network is accepted under `--max-drop`, and when a run goes back: functions of numbers.

What is said of accuracy holds for any score (see :meth:`~pyrobnn.pipeline.context.Context.score`)."""

from __future__ import annotations

import math

SLACK = 0.4  # what tuning with plain weights still adds to the posterior mean, in points
# A round of inference brings back what the last cut lost; how much it may lose before that, in points.
LOSS_PER_CUT = 5.0
SURE = 2.0  # standard errors of an accuracy that is called lost: nine rounds are judged, and one ends them all


def floor(base: float, drop: float | None, slack: float = 0.0) -> float:
    """The validation accuracy that is asked for.

    Args:
        base: of the dense network.
        drop: points that may be lost; None is 0.
        slack: points more.
    """
    return float(base) - ((drop or 0.0) + slack) / 100


def resolution(base: float, images: int) -> float:
    """Standard error of an accuracy in points: what one cannot see on so few images.

    >>> round(resolution(0.95, 120), 2)
    1.99
    """
    base = min(float(base), 1 - 0.5 / images)
    return 100 * math.sqrt(base * (1 - base) / images)


def recovered(accuracy: float, base: float, drop: float | None, error: float, point: float = 1.0) -> bool:
    """Whether inference brought a network back to where tuning can be expected to end within the drop.

    Args:
        accuracy, base: scores of the network and of the dense one.
        drop: what may be lost.
        error: standard error of a score, in the units of `drop`.
        point: what a point of accuracy is in these units.
    """
    return accuracy >= floor(base, drop, SLACK * point + SURE * error)


def holds(accuracy: float, base: float, drop: float | None) -> bool:
    """Whether a network is within the drop as it is."""
    return accuracy >= floor(base, drop)


def clearly_misses(accuracy: float, base: float, drop: float | None, error: float) -> bool:
    """Whether a network is outside the drop by more than the standard error of its score, in the units of `drop`.

    >>> clearly_misses(0.975, 0.9917, 1.0, 0.8), clearly_misses(0.965, 0.9917, 1.0, 0.8)   # 120 images; 2 and 3.2 lost
    (False, True)
    """
    return accuracy < floor(base, drop, error)


def worth_trying(base: float, drop: float | None, error: float, point: float = 1.0) -> float:
    """The score right after a cut from which a round of inference can be expected to bring the network back."""
    return floor(base, drop, LOSS_PER_CUT * point + error)
