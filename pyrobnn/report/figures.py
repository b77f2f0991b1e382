"""The pictures of a report page."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrobnn.metrics.scores import Reliability
    from pyrobnn.summary.types import Posterior


def as_dict(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: reports may be incomplete."""
    return value if isinstance(value, Mapping) else {}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether the value is a finite number (and not a bool)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# What a picture shows and how to read it, by the beginning of its title.
CAPTIONS = {
    "What the cut was read from": "One mark per channel at the moment it was kept or cut. Where a size or a drop was asked "
    "for, channels go by what they cost, not by one line for all, so marks of both kinds may overlap.",
    "Channels before and after": "Width of every channel group in the dense and in the compact net.",
    "Inclusion probabilities": "Probability that a channel belongs to the net. A posterior that has settled has its mass "
    "at 0 and at 1; much in between means that the fit was short.",
    "SNR during the fit": "How the signal-to-noise ratios spread: channels that the data do not need drift to the left.",
    "Histories of filters": "One line per filter. Filters whose lines run together are redundant: one of each pair goes.",
    "Lowest and highest channels": "Posterior of the channels nearest to being cut and farthest from it.",
    "First filters": "Posterior mean of the first convolution and how sure it is, filter by filter.",
    "Accuracy against MACs": "Accuracy right after each cut, before tuning, and after it. The distance between the two is "
    "what tuning won back.",
    "Calibration of the": "Accuracy against confidence, in bins; on the diagonal, confidence is honest.",
}


def caption(title: str) -> str | None:
    """The text under the picture of that title, if it is one of ours."""
    return next((text for start, text in CAPTIONS.items() if title.startswith(start)), None)


def standard_figures(
    posterior: Posterior, report: Mapping[str, Any], reliability: Mapping[str, Reliability] | None = None
) -> dict[str, Figure]:
    """The pictures that this posterior and report have data for, by title.

    Args:
        posterior: of the run.
        report: its figures; accuracy and MACs of the rounds make the curve.
        reliability: calibration bins by the name of the net, such as ``{"compact": …}``.
    """
    from pyrobnn.views import plots

    figures: dict[str, Figure] = {}

    def add(title: str, width: float, height: float, draw: Callable[[Axes], Axes]) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        figures[title] = figure

    groups = posterior.channels
    plain = 5.3  # inches; two beside each other on the page
    wide = min(max(0.32 * len(groups) + 2, plain), 11)
    kinds = {channel.statistic for channel in groups.values()}
    if groups:
        add("What the cut was read from", wide, 4, lambda ax: plots.snr_plot(posterior, ax=ax))
    if posterior.net_widths:
        before = {g: w[0] for g, w in posterior.net_widths.items()}
        after = {g: w[1] for g, w in posterior.net_widths.items()}
        add("Channels before and after", wide, 3.6, lambda ax: plots.width_graph(before, after, ax=ax))
    if "inclusion" in kinds:
        add("Inclusion probabilities", plain, 3.4, lambda ax: plots.inclusion_histogram(posterior, ax=ax))
    if "snr" in kinds and len(posterior.history) > 1:
        rows = min(len(posterior.history), 14)
        history = posterior.history
        step = "round" if len(history) == len(report.get("rounds") or []) else "epoch"
        marks = {channel.threshold for channel in groups.values()}
        line = marks.pop() if len(marks) == 1 else None
        add(
            "SNR during the fit",
            plain,
            1.2 + 0.3 * rows,
            lambda ax: plots.snr_ridge(history, step=step, threshold=line, ax=ax),
        )
    if posterior.trajectories:
        add("Histories of filters", plain, 4, lambda ax: plots.trajectories(posterior, ax=ax))
    if groups:
        rows = min(sum(len(c.kept) for c in groups.values()), 24)
        add(
            "Lowest and highest channels",
            plain,
            1.2 + 0.19 * rows,
            lambda ax: plots.forest(posterior, ax=ax),
        )
    first = next((s for s in posterior.sites.values() if s.loc.ndim == 4), None)
    if first is not None:
        lines = math.ceil(min(len(first.loc), 64) / 16)
        add("First filters", plain, 1.4 + 0.8 * lines, lambda ax: plots.filter_maps(posterior, ax=ax))
    curve = _curve(report)
    if curve is not None:
        macs, accuracy, start, tuned, name = curve
        add(
            "Accuracy against MACs, round by round",
            plain,
            3.8,
            lambda ax: plots.accuracy_macs(macs, accuracy, dense=start, tuned=tuned, name=name, ax=ax),
        )
    for name, bins in (reliability or {}).items():
        title = f"Calibration of the {name} net"
        add(title, 4.4, 4.4, functools.partial(_reliability, bins))
    return figures


def _curve(
    report: Mapping[str, Any],
) -> tuple[list[float], list[float], tuple[float, float | None] | None, tuple[float, float] | None, str] | None:
    """MACs and accuracy per round, the dense and the tuned point, and whose accuracy it is.

    Test and validation accuracies are never mixed in one picture.
    """
    for key, name in (("accuracy", "test accuracy"), ("valid_accuracy", "validation accuracy")):
        rounds = [r for r in report.get("rounds") or [] if isinstance(r, Mapping)]
        points = [(r["macs"], r[key]) for r in rounds if is_number(r.get("macs")) and is_number(r.get(key))]
        if points:
            dense = as_dict(report.get("dense"))
            start = (dense["macs"], dense.get(key)) if is_number(dense.get("macs")) else None
            tuned = None
            measured = as_dict(report.get("validation"))
            if key == "valid_accuracy" and start is not None and is_number(measured.get("dense")):
                start = (start[0], measured["dense"])
                small = as_dict(report.get("compact")).get("macs")
                if is_number(small) and is_number(measured.get("compact")):
                    tuned = (small, measured["compact"])
            return [p[0] for p in points], [p[1] for p in points], start, tuned, name
    return None


def _reliability(bins: Reliability, ax: Axes) -> Axes:
    from pyrobnn.views.plots import reliability_diagram

    return reliability_diagram(bins, ax=ax)
