"""What one Turbo-VBI update costs on VGG-16: closed-form factors (Module A) and sum-product (Module B).

The target: less than a tenth of an epoch, which takes 170 s on two cores (bf16, channels-last).

    python benchmarks/turbo_messages.py            # writes benchmarks/results/turbo_messages.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from pyrobnn.distributions.chains import two_level_messages
from pyrobnn.distributions.crossing import crossing_messages
from pyrobnn.guides.turbo import TurboGuide
from pyrobnn.model import BayesianModel
from pyrobnn.nets import vgg16
from pyrobnn.priors.turbo import Turbo, matrix_shape

EPOCH_SECONDS = 170.0

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "turbo_messages.json")
parser.add_argument("--repeats", type=int, default=3)
options = parser.parse_args()

torch.manual_seed(0)
guide = TurboGuide(BayesianModel(vgg16(), Turbo(), data_size=50_000))
evidence = {name: torch.randn(matrix_shape(guide.loc[name.replace(".", "|")].shape)) * 5 for name in guide._names}
weights = sum(value.numel() for value in evidence.values())
chances = (0.2, 0.2, 0.2, 0.2)


def seconds(run: object) -> float:
    """Median wall-clock time of a few runs."""
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        run()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


with torch.no_grad():
    by_tensor = {}
    for name, value in evidence.items():
        took = seconds(lambda value=value: two_level_messages(value, *chances))
        by_tensor[name] = {"filters": value.shape[0], "length": value.shape[1], "seconds": round(took, 4)}
        print(f"{name:22s} {value.shape[0]:4d} x {value.shape[1]:4d}  {took:7.3f} s")
    two_level = sum(row["seconds"] for row in by_tensor.values())
    crossing = seconds(lambda: [crossing_messages(v, *chances, sweeps=1) for v in evidence.values()])
    update = seconds(lambda: guide.update(inner=3))
    guide.factors = "mean-field"
    published = seconds(lambda: guide.update(inner=3))

result = {
    "network": "vgg16",
    "weights": weights,
    "longest_chain": max(row["length"] for row in by_tensor.values()),
    "threads": torch.get_num_threads(),
    "torch": torch.__version__,
    "machine": platform.machine(),
    "two_level_seconds": round(two_level, 3),
    "crossing_one_sweep_seconds": round(crossing, 3),
    "whole_update_seconds": round(update, 3),
    "whole_update_mean_field_seconds": round(published, 3),
    "share_of_epoch_two_level": round(two_level / EPOCH_SECONDS, 4),
    "share_of_epoch_whole_update": round(update / EPOCH_SECONDS, 4),
    "share_of_epoch_whole_update_mean_field": round(published / EPOCH_SECONDS, 4),
    "epoch_seconds": EPOCH_SECONDS,
    "by_tensor": by_tensor,
}
options.out.parent.mkdir(parents=True, exist_ok=True)
options.out.write_text(json.dumps(result, indent=2) + "\n")
print(f"{weights:,} weights: Module B {two_level:.2f} s, whole update {update:.2f} s of a {EPOCH_SECONDS:.0f} s epoch")
