"""Memory of the posterior predictive against the number of draws, beside Pyro's `Predictive`.

LeNet-5 with Gaussian weights (430,500 random numbers a draw), 256 images. Every figure is the peak resident
memory of a process of its own, which makes a prediction with 2 draws first, so that what is allocated once is
in the base. Aim: 1,000 draws within 10 % of 10. Writes benchmarks/results/predictive_memory.json.

    python benchmarks/predictive_memory.py
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from pyro.infer import Predictive

import pyrobnn as pb

CASES = (("pyrobnn", 10), ("pyrobnn", 100), ("pyrobnn", 1000), ("pyro", 10), ("pyro", 100))


def peak() -> float:
    """Peak resident memory of this process, MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(who: str, draws: int) -> dict[str, float]:
    """One case, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = pb.BayesianModel(pb.nets.lenet5(), pb.priors.Gaussian("fan_in"), data_size=60_000)
    guide = pb.guides.MeanField(model)
    x = torch.randn(256, 1, 28, 28)

    def run(number: int) -> None:
        if who == "pyrobnn":
            pb.predict(model, guide, x, draws=number)
        else:
            with torch.no_grad():
                Predictive(model, guide=guide, num_samples=number, return_sites=["obs"])(x)

    run(2)
    base, start = peak(), time.perf_counter()
    run(draws)
    return {"base_mb": base, "peak_mb": peak(), "seconds": time.perf_counter() - start}


def main() -> None:
    """Every case in a fresh process."""
    rows = []
    for who, draws in CASES:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, who, str(draws)], check=True, capture_output=True
        )
        row = {"who": who, "draws": draws, **{k: round(v, 1) for k, v in json.loads(done.stdout).items()}}
        print(row, flush=True)
        rows.append(row)
    by_draws = {row["draws"]: row["peak_mb"] for row in rows if row["who"] == "pyrobnn"}
    result = {
        "net": "lenet5",
        "images": 256,
        "ratio_1000_to_10": round(by_draws[1000] / by_draws[10], 4),
        "rows": rows,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    path = Path(__file__).parent / "results" / "predictive_memory.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"1,000 draws take {result['ratio_1000_to_10']:.3f} times the memory of 10")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
