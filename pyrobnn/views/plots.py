"""Plots of a posterior, channel by channel.

Every function takes an optional matplotlib ``ax`` and returns it. With ``ax``
given nothing of pyplot's global state is touched; without it a new pyplot
figure is made, so that a notebook shows it. Views of the network (filters,
widths, accuracy, calibration) are in `pyrobnn.views.plots_net`, histories in
`pyrobnn.views.plots_history`; both can be imported from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from pyrobnn.errors import ConfigError, DataError
from pyrobnn.views.plots_history import snr_lines, snr_ridge, trajectories
from pyrobnn.views.plots_net import accuracy_macs, filter_maps, reliability_diagram, width_graph
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

    from pyrobnn.summary.types import ChannelSummary, Posterior

__all__ = [
    "accuracy_macs",
    "filter_maps",
    "forest",
    "inclusion_histogram",
    "reliability_diagram",
    "snr_lines",
    "snr_plot",
    "snr_ridge",
    "trajectories",
    "width_graph",
]

NAMES = {
    "snr": "signal-to-noise ratio",
    "inclusion": "inclusion probability",
    "magnitude": "magnitude",
    "score": "score",
}
MAX_ROWS = 40


def _select(posterior: Posterior, groups: Sequence[str] | None) -> list[ChannelSummary]:
    if not posterior.channels:
        raise DataError("expected a posterior with channel groups, got none; give BayesianModel the groups of the net")
    unknown = [g for g in groups or () if g not in posterior.channels]
    if unknown:
        raise ConfigError(f"expected groups among {sorted(posterior.channels)}, got {unknown[0]!r}")
    return [posterior.channels[g] for g in (posterior.channels if groups is None else groups)]


def _label(channels: Iterable[ChannelSummary]) -> str:
    kinds = {channel.statistic for channel in channels}
    return NAMES[kinds.pop()] if len(kinds) == 1 else "score"


def _drawable(values: np.ndarray, log: bool) -> np.ndarray:
    """Values that a log axis can show: zeros just below the rest, infinities just above."""
    values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=0.0)
    finite = values[np.isfinite(values) & (values > 0)]
    low, high = (finite.min(), finite.max()) if finite.size else (1e-3, 1.0)
    # A channel that is exactly dead would stretch a log axis over hundreds of decades.
    floor = max(low / 2, 1e-4) if log else values.min(initial=0.0)
    return values.clip(floor, 2 * high)


def snr_plot(posterior: Posterior, groups: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """The statistic of every channel, sorted within its group, with the cut line.

    Circles are kept channels, crosses are cut ones. SNR and magnitude have a log
    axis (exact zeros stand at its lower end), inclusion a linear one. Under each
    group: kept / all channels.

    Args:
        posterior: what `pyrobnn.summarize` returns.
        groups: names of the groups to show, in this order; all by default.
        ax: axes to draw into.

    Raises:
        DataError: the posterior has no channel groups.
        ConfigError: an unknown group.
    """
    channels = _select(posterior, groups)
    ax = get_axes(ax, float(np.clip(0.32 * len(channels) + 2, 6.4, 14)), 4.0)
    log = any(channel.statistic != "inclusion" for channel in channels)
    xs, kept = [], []
    for i, channel in enumerate(channels):
        order = np.argsort(np.argsort(-to_numpy(channel.snr), kind="stable"), kind="stable")
        xs.append(i + (order + 1) / (len(order) + 1))
        kept.append(to_numpy(channel.kept) > 0.5)
    x, keep = np.concatenate(xs), np.concatenate(kept)
    y = _drawable(np.concatenate([to_numpy(channel.snr) for channel in channels]), log)
    size = float(np.clip(5000 / len(x), 4, 24))
    many = len(x) > 3000  # vector files of thousands of markers are slow to open
    for name, shown, marker, line, color in (("kept", keep, "o", 0.0, KEPT), ("cut", ~keep, "x", 0.9, CUT)):
        label = f"{name} ({shown.sum()})"
        ax.scatter(
            x[shown], y[shown], s=size, marker=marker, linewidths=line, color=color, label=label, rasterized=many
        )
    lines = [(i, c.threshold) for i, c in enumerate(channels) if c.threshold is not None]
    lines = [(i, t) for i, t in lines if t > 0 or not log]
    if lines:
        at, level = zip(*lines, strict=True)
        ax.hlines(level, at, [i + 1 for i in at], colors=LINE, linestyles="--", linewidths=1, label="cut line")
    if log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(-0.03, 1.03)
    notes = [f"{int(k.sum())}/{len(k)}" for k in kept]
    tidy(ax, "", f"{_label(channels)} per channel")
    ax.grid(axis="y", color=GREY, alpha=0.4, linewidth=0.5)
    group_columns(ax, [channel.group for channel in channels], notes, bands=True)
    moved = getattr(posterior, "convergence", None)
    if moved is not None:
        ax.set_xlabel(fill(str(moved), 80), fontsize=SMALL, loc="left", color=LINE if moved.settled else CUT)
    legend_above(ax)
    return ax


def forest(posterior: Posterior, k: int = 12, groups: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Posterior mean and 95 % interval of the k lowest and k highest channels.

    Ranked by the statistic of each channel (written at the right). The interval
    is loc ± 1.96 scale of the channel's own site; without one, of the norm of its
    filter over the posterior draws; without draws the statistic stands alone.

    Args:
        posterior: what `pyrobnn.summarize` returns.
        k: channels from each end, at most 20 (40 rows are what a page can show).
        groups: names of the groups to rank; all by default.
        ax: axes to draw into.

    Raises:
        ConfigError: k outside 1–20, or an unknown group.
        DataError: the posterior has no channel groups.
    """
    if not 1 <= k <= MAX_ROWS // 2:
        raise ConfigError(f"expected k between 1 and {MAX_ROWS // 2}, got {k}; choose fewer rows")
    rows = []
    for channel in _select(posterior, groups):
        score, kept = to_numpy(channel.snr), to_numpy(channel.kept) > 0.5
        mean, std = _moments(channel, posterior)
        rows += [(score[i], f"{channel.group}[{i}]", mean[i], std[i], kept[i]) for i in range(len(score))]
    rows.sort(key=lambda row: row[0])
    total, between = len(rows), max(len(rows) - 2 * k, 0)
    if between:
        rows = rows[:k] + rows[-k:]
    ax = get_axes(ax, 6.4, 1.2 + 0.19 * len(rows))
    # One empty row separates the ends when channels were left out in between.
    y = np.arange(len(rows)) + np.where((np.arange(len(rows)) >= k) & (between > 0), 1, 0)
    for keep, marker, colour, name in ((True, "o", KEPT, "kept"), (False, "X", CUT, "cut")):
        chosen = [i for i, row in enumerate(rows) if bool(row[4]) is keep]
        if chosen:
            ax.errorbar(
                [rows[i][2] for i in chosen],
                y[chosen],
                xerr=[1.96 * rows[i][3] for i in chosen],
                fmt=marker,
                color=colour,
                markersize=4.5,
                elinewidth=1.4,
                markeredgewidth=0,
                label=name,
            )
    side = ax.get_yaxis_transform()
    for i, row in enumerate(rows):
        ax.text(1.01, y[i], f"{row[0]:.2g}", transform=side, fontsize=7, va="center")
    ax.text(1.01, y[-1] + 1, _label(_select(posterior, groups)), transform=side, fontsize=7, ha="right")
    if between:
        ax.text(
            0.5,
            k,
            f"⋮ {between} of {total} channels between ⋮",
            transform=side,
            fontsize=SMALL,
            va="center",
            ha="center",
            color="#555555",
        )
    known = any(row[3] > 0 for row in rows)
    tidy(ax, "posterior mean and 95 % interval" if known else _label(_select(posterior, groups)))
    ax.set_yticks(y, [row[1] for row in rows])
    ax.set_ylim(-0.8, y[-1] + 0.8)
    ax.axvline(0, color=GREY, linewidth=1, zorder=0)
    legend_above(ax)
    return ax


def _moments(channel: ChannelSummary, posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel; (statistic, 0) where nothing more is known."""
    n = len(channel.kept)
    if channel.loc is not None and channel.scale is not None:
        return to_numpy(channel.loc), to_numpy(channel.scale)
    for name in (channel.group, f"{channel.group}.norm"):  # norm: filters with random weights
        draws = posterior.draws.get(name)
        if draws is not None and draws.shape[1:] == (n,) and len(draws) > 1:
            values = to_numpy(draws)
            return values.mean(0), values.std(0, ddof=1)
    return to_numpy(channel.snr), np.zeros(n)


def inclusion_histogram(posterior: Posterior, bins: int = 20, *, ax: Axes | None = None) -> Axes:
    """Histogram of the posterior inclusion probabilities, kept on top of cut.

    Raises:
        DataError: no channel group of the posterior has inclusion probabilities.
    """
    channels = [c for c in posterior.channels.values() if c.statistic == "inclusion"]
    if not channels:
        raise DataError(
            "expected inclusion probabilities, got a posterior without gates; use snr_plot or a gated prior"
        )
    ax = get_axes(ax, 6.4, 3.4)
    values = np.concatenate([to_numpy(c.snr) for c in channels]).clip(0, 1)
    kept = np.concatenate([to_numpy(c.kept) > 0.5 for c in channels])
    _, _, bars = ax.hist(
        [values[~kept], values[kept]],
        bins=np.linspace(0, 1, bins + 1).tolist(),
        stacked=True,
        color=[CUT, KEPT],
        label=[f"cut ({(~kept).sum()})", f"kept ({kept.sum()})"],
        edgecolor="white",
        linewidth=0.5,
    )
    for bar in bars[0]:  # type: ignore[index, union-attr]  # a list of hatches needs matplotlib 3.9
        bar.set_hatch("////")
    thresholds = {c.threshold for c in channels if c.threshold is not None}
    for i, threshold in enumerate(sorted(thresholds)):
        ax.axvline(threshold, color=LINE, linestyle="--", linewidth=1, label="" if i else "cut line")
    tidy(ax, "inclusion probability", "channels")
    ax.set_xlim(0, 1)
    legend_above(ax)
    return ax
