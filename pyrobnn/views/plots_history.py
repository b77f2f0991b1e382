"""Plots of histories: the statistic of channels over epochs, and norm trajectories with the chosen pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyrobnn.errors import ConfigError, DataError
from pyrobnn.views.plots_style import CUT, GREY, KEPT, LINE, get_axes, legend_above, tidy, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyrobnn.summary.types import Posterior

Trajectories = Sequence[Mapping[str, Mapping[str, Tensor]]]


def cut_in_round(posterior: Posterior, group: str, number: int) -> np.ndarray:
    """Which filters of a round's network that round cut, `[channels]`: those that no later one has."""
    units = to_numpy(posterior.trajectories[number][group]["units"]).astype(int)
    for entry in posterior.trajectories[number + 1 :]:
        if group in entry:
            left = to_numpy(entry[group]["units"]).astype(int)
            break
    else:
        left = np.flatnonzero(to_numpy(posterior.channels[group].kept) > 0.5)
    return ~np.isin(units, left)


def busiest(posterior: Posterior, number: int = 0) -> str:
    """The group of which a round cut the largest share, among those whose lines can be told apart."""
    entry = posterior.trajectories[number]
    fit = [name for name, parts in entry.items() if len(parts["units"]) <= 128] or list(entry)
    return max(fit, key=lambda name: float(cut_in_round(posterior, name, number).mean()))


def trajectories(
    posterior: Posterior, group: str | None = None, round: int = 1, *, pairs: int = 4, ax: Axes | None = None
) -> Axes:
    """L1 norm of every filter of one group over one round's training.

    Grey lines are filters that stay, orange ones those that this round cut. Of the closest pairs that lost a
    filter, the first few have both members drawn bold and numbered: the one that goes dashed, the one
    that stays for it in blue.

    Args:
        posterior: of a method that keeps a history.
        group: its name; by default the one of which the round cut most.
        round: of the history, from 1.
        pairs: how many pairs to highlight.
        ax: axes to draw into.

    Raises:
        DataError: the posterior has no history.
        ConfigError: an unknown group or round.
    """
    if not posterior.trajectories:
        raise DataError("expected a posterior with norm trajectories, got none: they are kept by method='hbfp'")
    if not 1 <= round <= len(posterior.trajectories):
        raise ConfigError(f"expected a round from 1 to {len(posterior.trajectories)}, got {round}")
    entry = posterior.trajectories[round - 1]
    group = busiest(posterior, round - 1) if group is None else group
    if group not in entry:
        raise ConfigError(f"expected a group among {', '.join(entry)}, got {group!r}")
    norms, order = to_numpy(entry[group]["norms"]), to_numpy(entry[group]["pairs"]).astype(int)
    cut = cut_in_round(posterior, group, round - 1)
    chosen = [(goes, stays) for goes, stays in order if cut[goes]][:pairs]
    ax = get_axes(ax, 6.4, 4.0)
    time = np.arange(len(norms))
    for color, these, label in ((GREY, ~cut, "stays"), (CUT, cut, "cut")):
        lines = ax.plot(
            time, norms[:, these], color=color, linewidth=0.8, alpha=0.8, zorder=1 if label == "stays" else 2
        )
        if lines:
            lines[0].set_label(f"{label} ({these.sum()})")
    for number, (goes, stays) in enumerate(chosen, start=1):
        first = number == 1
        ax.plot(time, norms[:, stays], color=KEPT, linewidth=2, zorder=3, label="stays for its pair" if first else None)
        ax.plot(time, norms[:, goes], color=CUT, linewidth=2, linestyle="--", zorder=4, label="goes" if first else None)
        ax.annotate(
            str(number),
            (time[-1], (norms[-1, goes] + norms[-1, stays]) / 2),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    tidy(ax, f"record in round {round}", f"L1 norm of the filters of {group}")
    ax.margins(x=0.04)
    legend_above(ax, 4)
    return ax


def snr_lines(
    posterior: Posterior, group: str | None = None, *, threshold: float | None = 1.0, ax: Axes | None = None
) -> Axes:
    """SNR (or inclusion probability) of every channel of one group, epoch by epoch, with the cut line.

    Channels that stay are blue; those that were cut are orange, up to the last epoch that they saw.

    Args:
        posterior: with a history, as runs have it.
        group: its name; by default the first one.
        threshold: where to draw the line of the fixed rule; None for no line. A budget cuts above or below it.
        ax: axes to draw into.

    Raises:
        DataError: nothing was recorded for the group.
    """
    chosen = next(iter(posterior.channels), "") if group is None else group
    history = enumerate(posterior.history, start=1)
    records = [(number, to_numpy(record[chosen])) for number, record in history if chosen in record]
    if not records or chosen not in posterior.channels:
        raise DataError(f"expected an SNR history of {group or 'any group'}, got none; fit with a history")
    channel = posterior.channels[chosen]
    time, values = np.array([number for number, _ in records]), np.stack([value for _, value in records])
    probability = channel.statistic == "inclusion"
    values = values if probability else values.clip(1e-3)
    stays = to_numpy(channel.kept) > 0.5
    ax = get_axes(ax, 5.0, 3.4)
    for color, these, label in ((CUT, ~stays, "cut"), (KEPT, stays, "kept")):
        lines = ax.plot(time, values[:, these], color=color, linewidth=0.8, alpha=0.7, marker=".", markersize=3)
        if lines:
            lines[0].set_label(f"{label} ({these.sum()})")
    if threshold is not None:
        ax.axhline(threshold, color=LINE, linestyle="--", linewidth=1, label="cut line")
    ax.set_yscale("linear" if probability else "log")
    ax.locator_params(axis="x", integer=True)
    tidy(ax, "epoch of inference", f"{'inclusion probability' if probability else 'SNR'} of {chosen}")
    legend_above(ax, 3)
    return ax


def snr_ridge(
    history: Sequence[Mapping[str, Tensor]],
    group: str | None = None,
    *,
    threshold: float | None = 1.0,
    max_rows: int = 14,
    step: str = "epoch",
    ax: Axes | None = None,
) -> Axes:
    """How the distribution of the channel SNRs moved during the fit, record by record.

    One smoothed density of log SNR per epoch or round, the first at the top, all
    on one height scale; evenly chosen ones when there are more than `max_rows`.
    NaN (a channel that was already cut) is left out.

    Args:
        history: one ``{group: SNR [channels]}`` per record, as in ``posterior.history``.
        group: one group; all together by default.
        threshold: where to draw the cut line; None for no line.
        max_rows: at most so many records are drawn.
        step: what a record is, for the axis.
        ax: axes to draw into.

    Raises:
        DataError: nothing was recorded for the group.
    """
    epochs = []
    for number, record in enumerate(history, start=1):
        parts = [to_numpy(v) for name, v in record.items() if group in (None, name)]
        values = np.concatenate([p.ravel() for p in parts]) if parts else np.empty(0)
        values = values[np.isfinite(values)]
        if values.size:
            epochs.append((number, np.log10(values.clip(1e-3, 1e6))))
    if not epochs:
        raise DataError(f"expected an SNR history of {group or 'any group'}, got none; fit with a history")
    pick = np.unique(np.linspace(0, len(epochs) - 1, min(max_rows, len(epochs))).round().astype(int))
    epochs = [epochs[i] for i in pick]
    values = np.concatenate([v for _, v in epochs])
    width = max(0.06, 0.9 * values.std() * len(epochs[0][1]) ** -0.2)  # Scott's rule, one for all epochs
    grid = np.linspace(values.min() - 3 * width, values.max() + 3 * width, 240)
    curves = [_density(v, grid, width) for _, v in epochs]
    top = max(curve.max() for curve in curves)
    ax = get_axes(ax, 6.4, 1.2 + 0.3 * len(epochs))
    from matplotlib import colormaps

    shades = colormaps["cividis"](np.linspace(0.05, 0.85, len(epochs)))
    for row, (curve, colour) in enumerate(zip(curves, shades, strict=True)):
        ax.fill_between(
            10**grid,
            -row,
            -row + 1.7 * curve / top,
            facecolor=colour,
            edgecolor="white",
            linewidth=0.8,
            zorder=2 + row,
        )
    if threshold is not None:
        ax.axvline(threshold, color=LINE, linestyle="--", linewidth=1, zorder=len(epochs) + 3, label="cut line")
    ax.set_xscale("log")
    # Without this, one dead channel stretches the axis by decades.
    shown = grid[np.max(curves, axis=0) > 0.004 * top]
    ax.set_xlim(10 ** shown[0], 10 ** shown[-1])
    tidy(ax, f"signal-to-noise ratio of {group or 'all channels'}", step)
    ax.set_yticks([-r for r in range(len(epochs))], [str(number) for number, _ in epochs])
    ax.set_ylim(-len(epochs) + 0.8, 1.9)
    legend_above(ax)
    return ax


def _density(values: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    """Gaussian kernel density; binned first, so that the cost does not grow with the channels."""
    step = grid[1] - grid[0]
    edges = np.append(grid, grid[-1] + step) - step / 2
    counts = np.histogram(values, edges)[0]
    kernel = np.exp(-0.5 * ((grid[:, None] - grid[None, :]) / width) ** 2)
    return kernel @ counts / (counts.sum() * width * np.sqrt(2 * np.pi))
