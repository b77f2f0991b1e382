"""Colours and helpers that all plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008): told apart under all common forms of colour blindness.
KEPT = "#0072B2"  # blue
CUT = "#D55E00"  # vermillion
LINE = "#000000"
GREEN = "#009E73"
GREY = "#B8B8B8"
BAND = "#F3F3F3"
SMALL = 8


def get_axes(ax: Axes | None, width: float = 6.4, height: float = 4.0) -> Axes:
    """The axes given, or new ones in a pyplot figure that a notebook will show."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Values as float64 on the CPU, whatever the precision and place they come from."""
    return tensor.detach().cpu().double().numpy()


def tidy(ax: Axes, xlabel: str = "", ylabel: str = "") -> Axes:
    """Axis labels, no box, small ticks, and the grid behind the data."""
    ax.set_xlabel(xlabel, fontsize=SMALL + 1)
    ax.set_ylabel(ylabel, fontsize=SMALL + 1)
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    return ax


def legend_above(ax: Axes, columns: int = 3) -> None:
    """A frameless legend over the axes, where it cannot hide data."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            frameon=False,
            fontsize=SMALL,
            borderaxespad=0.2,
            handletextpad=0.4,
            columnspacing=1.4,
        )


def group_columns(ax: Axes, names: list[str], notes: list[str], *, bands: bool) -> None:
    """One unit of the x axis per group, on request with a band behind every second one.

    Under each stand its name and note; upright where they would touch each other.
    """
    n = len(names)
    for i in range(1, n, 2) if bands else ():
        ax.axvspan(i, i + 1, color=BAND, zorder=0, linewidth=0)
    upright = n * max((len(name) for name in names), default=0) > 60
    labels = [f"{a}{'  ' if upright else chr(10)}{b}" for a, b in zip(names, notes, strict=True)]
    size = SMALL if n <= 30 else 6
    ax.set_xticks(np.arange(n) + 0.5, labels, rotation=90 if upright else 0, fontsize=size)
    ax.tick_params(axis="x", length=0, labelsize=size)
    ax.set_xlim(0, max(n, 1))
