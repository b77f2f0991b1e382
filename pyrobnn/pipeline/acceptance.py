"""When a smaller network is accepted under `--max-drop`, and when a run goes back: functions of numbers."""

from __future__ import annotations

import math

SLACK = 0.4  # what tuning with plain weights still adds to the posterior mean, in points
# A round of inference brings back what the last cut lost; how much it may lose before that, in points.
LOSS_PER_CUT = 5.0


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


def recovered(accuracy: float, base: float, drop: float | None, images: int) -> bool:
    """Whether inference brought a network back to where tuning can be expected to end within the drop."""
    return accuracy >= floor(base, drop, SLACK + resolution(base, images))


def holds(accuracy: float, base: float, drop: float | None) -> bool:
    """Whether a network is within the drop as it is."""
    return accuracy >= floor(base, drop)


def worth_trying(base: float, drop: float | None, images: int) -> float:
    """The accuracy right after a cut from which a round of inference can be expected to bring the network back."""
    return floor(base, drop, LOSS_PER_CUT + resolution(base, images))
