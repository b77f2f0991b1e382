"""Pictures of methods that `channel_pictures.py` does not draw: what their cut of a small CNN on digits was read from.

python benchmarks/method_pictures.py            writes docs/images/decision-METHOD.png
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

import pyrobnn as pb
from pyrobnn.views import plots

IMAGES = Path(__file__).parent.parent / "docs" / "images"
METHODS = ("gaussian", "bayes-l1", "hbfp")

if __name__ == "__main__":
    data = pb.load_data("digits")
    for method in METHODS:
        result = pb.compress("small_cnn", data, method=method, target_macs=0.3, epochs=24, seed=0, progress=False)
        wide = 1 + bool(result.posterior.trajectories)
        figure = Figure(figsize=(5.3 * wide, 3.6), layout="constrained")
        axes = figure.subplots(1, wide, squeeze=False)[0]
        plots.snr_plot(result.posterior, ax=axes[0])
        if wide == 2:
            plots.trajectories(result.posterior, ax=axes[1])
        figure.savefig(IMAGES / f"decision-{method}.png", dpi=110)
        print(method, f"{result.report['compact']['accuracy']:.2%}", flush=True)
