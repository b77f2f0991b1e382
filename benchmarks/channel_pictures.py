"""SNR or inclusion of every channel over the epochs of inference, one picture per method, from finished runs.

    python benchmarks/channel_noise.py lenet5-mnist-m07-s0
    python benchmarks/spike_slab.py lenet5
    python benchmarks/channel_pictures.py [METHOD ...]      # docs/images/channels-<method>.png

Without names: every method whose run is finished.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure
from rows import RUNS

import pyrobnn as pb
from pyrobnn.summary.types import ChannelSummary
from pyrobnn.views import plots

IMAGES = Path(__file__).parent.parent / "docs" / "images"
NOISE, SLAB = ("ard", "sbp", "rbp", "rbp-spike"), ("ss-ig", "ss-gl", "ss-ghs")
RUN_OF = {name: f"{name}-lenet5-mnist-m07-s0" for name in NOISE} | {name: f"{name}-lenet5-mnist-s0" for name in SLAB}


def draw(method: str) -> Path:
    """The picture of one method's run: a panel per group; with gates a histogram of all, or the SNR of their noise."""
    posterior = pb.load_run(run_of(method)).posterior
    gates = all(channel.statistic == "inclusion" for channel in posterior.channels.values())
    panels = len(posterior.channels) + gates
    figure = Figure(figsize=(3.8 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for ax, name in zip(axes, posterior.channels, strict=False):
        plots.snr_lines(posterior, name, threshold=0.5 if gates else 1.0, ax=ax)
    if gates and method in NOISE:
        plots.snr_plot(replace(posterior, channels=noise_of(posterior.channels)), ax=axes[-1])
    elif gates:
        plots.inclusion_histogram(posterior, ax=axes[-1])
    path = IMAGES / f"channels-{method}.png"
    figure.savefig(path, dpi=110)
    return path


def noise_of(channels: dict[str, ChannelSummary]) -> dict[str, ChannelSummary]:
    """The SNR of the noise in place of an inclusion probability; that has no cut line."""
    return {
        name: replace(channel, snr=channel.loc.abs() / channel.scale, statistic="snr", threshold=None)
        for name, channel in channels.items()
        if channel.loc is not None and channel.scale is not None
    }


def run_of(method: str) -> Path:
    """The run directory of a method."""
    return RUNS / RUN_OF[method]


def finished(method: str) -> bool:
    """Whether the run of a method is there, to its end."""
    return (run_of(method) / "report.json").exists()


if __name__ == "__main__":
    for name in sys.argv[1:] or [method for method in RUN_OF if finished(method)]:
        if name not in RUN_OF or not finished(name):
            sys.exit(f"no finished run of {name!r}; expected one of {', '.join(RUN_OF)}, after its benchmark has run")
        print(draw(name))
