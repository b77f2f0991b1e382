"""Plots of a network: filters, widths, accuracy against MACs, calibration.

As in `pyrobnn.views.plots`, every function takes an optional ``ax`` and
returns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyrobnn.errors import ConfigError, DataError
from pyrobnn.views.plots_style import (
    CUT,
    GREY,
    KEPT,
    LINE,
    SMALL,
    get_axes,
    group_columns,
    legend_above,
    tidy,
    to_numpy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyrobnn.metrics.evaluate import Reliability
    from pyrobnn.summary.types import Posterior, SiteSummary


def filter_maps(
    posterior: Posterior, site: str | None = None, max_filters: int = 64, *, ax: Axes | None = None
) -> Axes:
    """The filters of one convolution: posterior mean above, standard deviation below.

    Three input channels are shown as colours (grey is 0), one as a diverging map
    (white is 0), any other number by its root mean square. Standard deviations
    are root mean squares over input channels; brighter is more uncertain. All
    tiles of a kind share one scale, given under the picture. Frames: solid for
    kept filters, dashed for cut ones.

    Args:
        posterior: what `pyrobnn.summarize` returns.
        site: a site of four axes; the first one by default.
        max_filters: show so many filters at most, the first ones.
        ax: axes to draw into.

    Raises:
        DataError: there is no site of four axes.
        ConfigError: `site` is not one.
    """
    chosen = _conv_site(posterior, site)
    loc, scale = to_numpy(chosen.loc), to_numpy(chosen.scale)
    kept = _kept(posterior, chosen)[:max_filters]
    means, mean_note = _mean_tiles(loc)
    spread = np.sqrt((scale**2).mean(1))
    spreads = _colours("cividis", spread, 0.0, spread.max())
    n, (h, w) = len(kept), loc.shape[2:]
    columns = min(n, 16 if n > 24 else 8)
    gap = max(1, round(0.35 * w))
    cell_h, cell_w = 2 * h + 2 * gap, w + gap
    lines = -(-n // columns)
    canvas = np.ones((lines * cell_h + gap, columns * cell_w + gap, 3))
    ax = get_axes(ax, 6.4, 0.6 + 6.4 * canvas.shape[0] / canvas.shape[1])
    from matplotlib.patches import Rectangle

    for i in range(n):
        top, left = gap + (i // columns) * cell_h, gap + (i % columns) * cell_w
        canvas[top : top + h, left : left + w] = means[i]
        canvas[top + h : top + 2 * h, left : left + w] = spreads[i]
        frame = Rectangle((left - 0.5, top - 0.5), w, 2 * h, fill=False, linewidth=1.6)
        frame.set_edgecolor(KEPT if kept[i] else CUT)
        frame.set_linestyle("-" if kept[i] else (0, (2, 1)))
        ax.add_patch(frame)
        ax.plot([left - 0.5, left + w - 0.5], [top + h - 0.5] * 2, color="white", linewidth=1.6)
    for keep, name in ((True, "kept"), (False, "cut")):
        count = int((kept == keep).sum())
        colour, line = (KEPT, "-") if keep else (CUT, "--")
        ax.plot([], [], color=colour, linestyle=line, label=f"{name} ({count})")
    ax.imshow(canvas, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    note = f"{chosen.name}: mean {mean_note} (top), standard deviation 0 … {spread.max():.2g} (bottom)"
    tidy(ax, note)
    ax.spines[["left", "bottom"]].set_visible(False)
    legend_above(ax)
    return ax


def _conv_site(posterior: Posterior, name: str | None) -> SiteSummary:
    maps = {s.name: s for s in posterior.sites.values() if s.loc.ndim == 4}
    if not maps:
        raise DataError(
            "expected a site of shape [filter, in_channel, kh, kw], got none; "
            "filters can be shown after a fit with a prior on the weights"
        )
    if name is not None and name not in maps:
        raise ConfigError(f"expected a convolution site among {list(maps)}, got {name!r}")
    return maps[name] if name is not None else next(iter(maps.values()))


def _kept(posterior: Posterior, site: SiteSummary) -> np.ndarray:
    """Bool per filter; a site that was already cut holds only kept filters."""
    channel = posterior.channels.get(site.group or site.name.removesuffix(".weight"))
    if channel is None or len(channel.kept) != site.loc.shape[0]:
        return np.ones(site.loc.shape[0], bool)
    return to_numpy(channel.kept) > 0.5


def _colours(cmap: str, values: np.ndarray, low: float, high: float) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps[cmap]((values - low) / max(high - low, 1e-12))[..., :3]


def _mean_tiles(loc: np.ndarray) -> tuple[np.ndarray, str]:
    """RGB tiles ``[F, h, w, 3]`` of the posterior means, and their range in words."""
    peak = max(float(np.abs(loc).max()), 1e-12)
    if loc.shape[1] == 3:
        return 0.5 + 0.5 * loc.transpose(0, 2, 3, 1) / peak, f"±{peak:.2g}"
    if loc.shape[1] == 1:
        return _colours("PuOr", loc[:, 0], -peak, peak), f"±{peak:.2g}"
    size = np.sqrt((loc**2).mean(1))
    return _colours("cividis", size, 0.0, size.max()), f"(rms) 0 … {size.max():.2g}"


def width_graph(before: Mapping[str, int], after: Mapping[str, int], *, ax: Axes | None = None) -> Axes:
    """Channels per group before (grey) and after (blue) the cut; under each group: after/before.

    Args:
        before: ``{group: channels}`` of the dense net.
        after: the same of the compact net; a missing group counts as 0.
        ax: axes to draw into.

    Raises:
        DataError: `before` is empty.
    """
    if not before:
        raise DataError("expected the width of at least one group, got none; pass {group: channels}")
    names = list(before)
    old = np.array([before[g] for g in names])
    new = np.array([after.get(g, 0) for g in names])
    ax = get_axes(ax, float(np.clip(0.3 * len(names) + 2, 6.4, 14)), 3.6)
    at = np.arange(len(names)) + 0.5
    ax.bar(at, old, width=0.82, color="#DADADA", label=f"before ({old.sum()})")
    ax.bar(at, new, width=0.82, color=KEPT, label=f"after ({new.sum()})")
    tidy(ax, "", "channels")
    ax.grid(axis="y", color=GREY, alpha=0.4, linewidth=0.5)
    group_columns(ax, names, [f"{b}/{a}" for a, b in zip(old, new, strict=True)], bands=False)
    ax.set_ylim(0, 1.05 * max(int(old.max()), int(new.max()), 1))
    legend_above(ax)
    return ax


def accuracy_macs(
    macs: Sequence[float],
    accuracy: Sequence[float],
    *,
    dense: tuple[float, float | None] | None = None,
    tuned: tuple[float, float] | None = None,
    labels: Sequence[str] | None = None,
    name: str = "test accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Accuracy against multiply-accumulates, one point per round or network.

    Args:
        macs: multiply-accumulates of one example, per point.
        accuracy: fraction right, per point.
        dense: (macs, accuracy or None) of the uncut net. With it the x axis is
            the percentage of its MACs that is left.
        tuned: (macs, accuracy) of the compact net after tuning, where the points are measured right
            after each cut.
        labels: a short text per point.
        name: of the accuracy, on its axis.
        ax: axes to draw into.

    Raises:
        DataError: no points, or lists of different lengths.
    """
    if not len(macs) or len(macs) != len(accuracy) or (labels is not None and len(labels) != len(macs)):
        raise DataError(
            f"expected as many accuracies and labels as MACs, at least one, got {len(macs)} MACs, "
            f"{len(accuracy)} accuracies and {'no' if labels is None else len(labels)} labels"
        )
    ax = get_axes(ax, 6.4, 3.8)
    unit = 1e6 if dense is None else dense[0] / 100
    x, y = np.asarray(macs, float) / unit, 100 * np.asarray(accuracy, float)
    order = np.argsort(-x, kind="stable")
    ax.plot(
        x[order],
        y[order],
        "o-",
        color=KEPT,
        markersize=5,
        linewidth=1.3,
        label="compact" if tuned is None else "right after a cut",
    )
    if tuned is not None:
        ax.plot(tuned[0] / unit, 100 * tuned[1], marker="D", markersize=7, color=KEPT, linestyle="none", label="tuned")
    if dense is not None and dense[1] is not None:
        ax.plot(100, 100 * dense[1], marker="*", markersize=11, color=CUT, linestyle="none", label="dense")
        ax.axhline(100 * dense[1], color=GREY, linewidth=1, linestyle="--", zorder=0)
    for i, text in enumerate(labels or ()):
        ax.annotate(text, (x[i], y[i]), textcoords="offset points", xytext=(7, -9), ha="left", fontsize=7)
    tidy(ax, "MACs (millions)" if dense is None else "MACs left (% of dense)", f"{name} (%)")
    ax.set_xlim(0, 1.06 * max(x.max(), 100 if dense is not None else 0))
    ax.margins(y=0.15)
    ax.ticklabel_format(useOffset=False)
    ax.grid(color=GREY, alpha=0.4, linewidth=0.5)
    legend_above(ax)
    return ax


def reliability_diagram(reliability: Reliability, *, ax: Axes | None = None) -> Axes:
    """Accuracy against confidence per bin, with the gap to perfect calibration.

    Blue bars are the accuracy of a bin, hatched vermillion the gap to its mean
    confidence; the line at the foot shows how the examples spread over the bins
    (square-root scale, so that thin bins stay visible).

    Args:
        reliability: the bins, from ``Tally.reliability()``.
        ax: axes to draw into.

    Raises:
        DataError: the bins are empty.
    """
    count = to_numpy(reliability.count)
    if count.sum() == 0:
        raise DataError("expected bins with examples, got empty ones; add predictions to the tally first")
    ax = get_axes(ax, 4.4, 4.4)
    confidence, accuracy = to_numpy(reliability.confidence), to_numpy(reliability.accuracy)
    edges = np.linspace(0, 1, len(count) + 1)
    filled = count > 0
    middle, width = (edges[:-1] + edges[1:])[filled] / 2, 1 / len(count)
    ax.bar(middle, accuracy[filled], width=width, color=KEPT, edgecolor="white", linewidth=0.6, label="accuracy")
    ax.bar(
        middle,
        (confidence - accuracy)[filled],
        bottom=accuracy[filled],
        width=width,
        facecolor="none",
        edgecolor=CUT,
        hatch="////",
        linewidth=0.8,
        label="gap to confidence",
    )
    ax.plot([0, 1], [0, 1], color=LINE, linestyle="--", linewidth=1)
    share = np.sqrt(count / count.max())
    ax.stairs(0.12 * share, edges, color="#222222", linewidth=1, label="examples")
    ax.text(
        0.03,
        0.96,
        f"ECE {100 * reliability.ece:.2f} %",
        fontsize=SMALL + 1,
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2},
    )
    tidy(ax, "confidence", "accuracy")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_aspect("equal")
    legend_above(ax)
    return ax
