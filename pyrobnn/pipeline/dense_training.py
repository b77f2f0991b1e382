"""Whether the training of the dense network had converged; if not, comparisons with it mean little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

STILL_GAINING = 0.03  # share of what training gained that its last epoch may bring


def last_gain(losses: Sequence[float]) -> float | None:
    """Share of the fall of the training loss since the first epoch that came in the last one.

    Free of the loss's unit and zero. Where the loss falls on a straight line over E epochs it is 1 / (E − 1).

    Args:
        losses: mean training loss by epoch.

    Returns:
        1 where the loss never fell; None with fewer than two epochs.

    >>> round(last_gain([2.0, 1.0, 0.5, 0.4]), 4), last_gain([1.0])
    (0.0625, None)
    """
    if len(losses) < 2:
        return None
    fallen = losses[0] - losses[-1]
    gain = losses[-2] - losses[-1]
    return max(0.0, gain / fallen) if math.isfinite(fallen) and fallen > 0 else 1.0


def judged(losses: Sequence[float]) -> dict[str, Any]:
    """`dense_training` of a report: `epochs`, `last_gain` (None after one epoch) and `undertrained`."""
    gain = last_gain(losses)
    return {"epochs": len(losses), "last_gain": gain, "undertrained": gain is None or gain > STILL_GAINING}


def warning(found: Mapping[str, Any]) -> str | None:
    """What people are told of an undertrained network; None of another."""
    if not found.get("undertrained"):
        return None
    epochs, gain = found.get("epochs", 0), found.get("last_gain")
    if gain is None:
        why = "it was trained for one epoch"
    else:
        why = f"the last of its {epochs} epochs still brought {100 * gain:.0f} % of all that training gained"
    return f"the dense network is undertrained ({why}), so a comparison with it says little: give it more --epochs, or --weights"
