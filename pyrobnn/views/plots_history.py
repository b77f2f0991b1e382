"""Histories of a layer's channels: their statistic over the epochs; norm trajectories with the chosen pairs."""

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
        lines = ax.plot(time, norms[:, these], color=color, linewidth=0.8, alpha=0.8, zorder=1 if label == "stays" else 2)
        if lines:
            lines[0].set_label(f"{label} ({these.sum()})")
    for number, (goes, stays) in enumerate(chosen, start=1):
        first = number == 1
        ax.plot(time, norms[:, stays], color=KEPT, linewidth=2, zorder=3, label="stays for its pair" if first else None)
        ax.plot(
            time, norms[:, goes], color=CUT, linewidth=2, linestyle="--", zorder=4, label="goes" if first else None
        )
        ax.annotate(str(number), (time[-1], (norms[-1, goes] + norms[-1, stays]) / 2), xytext=(4, 0),
                    textcoords="offset points", va="center", fontsize=7)
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
