"""SNR of every channel over the epochs of inference, one picture per noise method, from finished runs.

    python benchmarks/channel_noise.py lenet5-mnist-m07-s0
    python benchmarks/noise_pictures.py      # docs/images/snr-{ard,sbp,rbp}.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure
from rows import RUNS

from pyrobnn.inference.checkpoint import load_checkpoint
from pyrobnn.posterior import plots
from pyrobnn.posterior.state import from_state

IMAGES = Path(__file__).parent.parent / "docs" / "images"
ROW = "{}-lenet5-mnist-m07-s0"


def draw(method: str) -> Path:
    """The picture of one method's run."""
    checkpoint = RUNS / ROW.format(method) / "checkpoint.pt"
    if not checkpoint.exists():
        sys.exit(f"{checkpoint} not found: first run `python benchmarks/channel_noise.py {ROW.format(method)}`")
    posterior = from_state(load_checkpoint(checkpoint)["carry"]["posterior"])
    figure = Figure(figsize=(3.8 * len(posterior.channels), 3.4), layout="constrained")
    panels = figure.subplots(1, len(posterior.channels), squeeze=False)[0]
    for ax, (name, channel) in zip(panels, posterior.channels.items(), strict=True):
        plots.snr_lines(posterior, name, threshold=0.5 if channel.statistic == "inclusion" else 1.0, ax=ax)
    path = IMAGES / f"snr-{method}.png"
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    for name in sys.argv[1:] or ("ard", "sbp", "rbp"):
        print(draw(name))
