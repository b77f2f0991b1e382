"""Supports as pictures: prior draws of the three structures, and what a run kept.

Above, one prior draw of LeNet-5's second convolution (50 filters of 500 weights) with chains in two
levels (default settings), with crossing chains (all transitions 0.3) and without memory at the density of
the first. Below, the weights that are not zero in the finished networks of `turbo_vbi.py`, with the
two-level prior and with chains that have no memory (their filters are still on or off as a whole).

    python benchmarks/turbo_vbi.py lenet5
    python benchmarks/turbo_pictures.py          # docs/images/turbo-supports.png
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rows import RUNS
from torch import Tensor

import pyrobnn as pb
from pyrobnn.distributions.markov import run_length
from pyrobnn.priors.turbo import Transitions, Turbo, matrix_shape

PATH = Path(__file__).parent.parent / "docs" / "images" / "turbo-supports.png"
FILTERS, LENGTH = 50, 500
RUN_OF = {"two levels": "turbo-vbi-lenet5-mnist-s0", "chains without memory": "turbo-vbi-independent-lenet5-mnist-s0"}


def prior_draws() -> dict[str, Tensor]:
    """One draw of each structure, `{name: [filters, length]}`."""
    torch.manual_seed(0)
    crossing = Turbo(transitions=Transitions(0.3, 0.3, 0.3, 0.3), structure="crossing")
    draws = {
        "two levels": Turbo().support_prior("conv2.weight", FILTERS, LENGTH).sample(),
        "crossing chains": crossing.support_prior("conv2.weight", FILTERS, LENGTH).sample(),
    }
    density = float(draws["two levels"].mean())
    # A chain whose two rows are alike forgets where it was; filters are on and off likewise.
    alone = Transitions(density, 1 - density, 1 - 1e-6, 1e-6)
    draws["every weight alone, same density"] = (
        Turbo(transitions=alone).support_prior("conv2.weight", FILTERS, LENGTH).sample()
    )
    return draws


def kept(run: str) -> Tensor | None:
    """Weights of the second convolution that a finished run left other than zero, `[filters, length]`."""
    folder = RUNS / run
    if not (folder / "report.json").exists():
        return None
    weight = dict(pb.load_compact(folder).named_parameters())["conv2.weight"].detach()
    return (weight != 0).float().reshape(matrix_shape(weight.shape))


def show(ax: Axes, support: Tensor, title: str) -> None:
    """One support, filters down, weights of a filter to the right."""
    ax.imshow(support, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    run, chance = run_length(support.bool())
    ax.set_title(f"{title}\n{float(support.mean()):.0%} on, mean run {run:.1f} (by chance {chance:.1f})", fontsize=9)
    ax.set_xlabel("weight of the filter")
    ax.set_ylabel("filter")


def main() -> None:
    draws = prior_draws()
    finished = {name: support for name, run in RUN_OF.items() if (support := kept(run)) is not None}
    figure = Figure(figsize=(11, 3.2 if not finished else 5.6), layout="constrained")
    rows = figure.subplots(2 if finished else 1, 3, squeeze=False)
    for ax, (name, support) in zip(rows[0], draws.items(), strict=True):
        show(ax, support, f"prior draw: {name}")
    if finished:
        for ax in rows[1]:
            ax.set_axis_off()
        for ax, (name, support) in zip(rows[1], finished.items(), strict=False):
            ax.set_axis_on()
            show(ax, support, f"kept in LeNet-5: {name}")
    figure.savefig(PATH, dpi=110)
    print(PATH)


if __name__ == "__main__":
    main()
