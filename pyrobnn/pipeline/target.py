"""Whether a run reached its target: figures for the report, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrobnn.metrics.metric import Metric
from pyrobnn.metrics.paired import compare
from pyrobnn.pipeline.acceptance import holds

WORDS = {
    "target_macs": "the MACs left",
    "target_params": "the parameters left",
    "target_nonzero": "the parameters other than zero",
    "target_latency": "the latency left",
}
RESOLVED = {"target_latency": 0.05}  # a time is not told apart from one that is closer: a target is met within that


def outcome(
    asked: Mapping[str, float],
    dense: Mapping[str, Any],
    compact: Mapping[str, Any],
    *,
    base: float | None,
    tuned: float | None,
    interval: tuple[float, float] | None = None,
    latency: float | None = None,
) -> dict[str, Any]:
    """The `target` of a report: what was asked for under its own keys, and `asked`, `reached`, `met`, `interval`.

    Args:
        asked: shares that may be left, and `max_drop` in points.
        dense, compact: figures of the report (`macs`, `params`, `nonzero_params`).
        base, tuned: validation accuracy of the dense and of the compact network.
        interval: of the drop in points, 95 %.
        latency: of the compact network, as a share of the dense one's, measured in turn.

    Returns:
        `{}` where nothing was asked for.
    """
    if not asked:
        return {}
    reached: dict[str, Any] = {
        "target_macs": compact["macs"] / dense["macs"],
        "target_params": compact["params"] / dense["params"],
        "target_nonzero": compact["nonzero_params"] / dense["params"],
        "target_latency": latency,
    }
    met = all(reached[name] <= value + RESOLVED.get(name, 1e-9) for name, value in asked.items() if name != "max_drop")
    if "max_drop" in asked:
        assert base is not None and tuned is not None
        reached["max_drop"] = 100 * (base - tuned)
        met = met and holds(tuned, base, asked["max_drop"])
    found = {**asked, "asked": dict(asked), "reached": {name: reached[name] for name in asked}, "met": met}
    return found if interval is None else {**found, "interval": list(interval)}


def drop_interval(metric: Metric, dense: Tensor, compact: Tensor) -> tuple[float, float]:
    """95 % interval of what is lost, in the units of `max_drop`, by a paired test on the same validation examples.

    Args:
        metric: that is judged.
        dense, compact: statistics `[N, S]` of the two networks.
    """
    low, high = sorted(metric.gain(end) for end in compare(metric, dense, compact).interval)
    return -high, -low


LITTLE = 0.3  # share of the MACs: a rule that removes less leaves the reader asking for more


def complaints(
    target: Mapping[str, Any],
    *,
    cut: bool,
    figure: str = "points of validation accuracy",
    removed: Mapping[str, float] | None = None,
) -> list[str]:
    """What a user must be told: that the target was missed, that nothing was cut, or hardly anything.

    Args:
        target: of the report, see :func:`outcome`.
        cut: the result is smaller than the dense network.
        figure: that may drop.
        removed: shares of the MACs and parameters that are gone (`reduction` of the report).
    """
    lines = []
    if target.get("met") is False:
        parts = []
        for name, value in target["asked"].items():
            got = target["reached"][name]
            if name == "max_drop":
                written = f"{got:.2f}" if figure.startswith("points") else f"{got:.3g}"
                parts.append(f"{written} {figure} lost where {value:g} were allowed")
            else:
                parts.append(f"{100 * got:.1f} % of {WORDS[name]} where {100 * value:g} % were asked for")
        lines.append("the target was missed: " + "; ".join(parts) + ": give it more --epochs or ask for less")
    if not cut:
        hint = (
            "allow a larger --max-drop or give it more --epochs"
            if target
            else "say what you want by --max-drop or --target-macs"
        )
        lines.append(f"nothing was cut, the result is as large as the dense network: {hint}")
    elif not target and removed is not None and removed["macs"] < LITTLE:
        lines.append(
            f"no target was given, and the method's own rule removes {100 * removed['macs']:.1f} % of the MACs and "
            f"{100 * removed['params']:.1f} % of the parameters: say what you want by --max-drop or --target-macs"
        )
    return lines
