"""What channel noise costs: a training step with noise against the same step without.

VGG-16 and ResNet-20, batch 128, the default precision, medians of CPU time over interleaved steps of one process.
`in`: one draw for the batch, on the input slices of all consumers (target: 1.15 times the plain step); `example`: a draw for
every example, on what the consumers get. (`results/noise_step.json` is older, measured by the clock and without `example`;
`results/noise_by_example.json` is this script on a busy machine, `--steps 6 --out benchmarks/results/noise_by_example.json`.)
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.guides.function import NoLatents
from pyrobnn.guides.noise import NormalNoise
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.fit import Loop
from pyrobnn.priors.noise import ARDNoise
from pyrobnn.report.report import versions

RESULT = Path(__file__).parent / "results" / "noise_step.json"


KINDS = ("plain", "in", "example")


def loop(name: str, kind: str, data: Data, batch: int) -> Loop:
    """A fit of the network, ready to step; without noise if there is no placement."""
    torch.manual_seed(0)
    net = pb.nets.build(name, in_channels=3, image_size=32)
    if kind == "plain":
        model = pb.BayesianModel(net, data_size=len(data.train))
        guide: NoLatents | NormalNoise = NoLatents()
    else:
        groups = pb.channel_groups(net, data.example)
        model = pb.BayesianModel(net, ARDNoise(), data_size=len(data.train), groups=groups)
        guide = NormalNoise(model, init_scale=0.1)
    estimator = "example" if kind == "example" else "weight"
    config = FitConfig(epochs=1, batch_size=batch, lr=1e-3, validate=False, estimator=estimator)
    return Loop(model, guide, data, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    data = pb.load_data("cifar10")
    data = replace(data, train=data.train.take(4 * args.batch))
    x, y = next(iter(data.train.batches(args.batch)))
    found: dict[str, object] = {"batch": args.batch, "steps": args.steps, "threads": torch.get_num_threads()}
    for name in ("vgg16", "resnet20"):
        loops = {kind: loop(name, kind, data, args.batch) for kind in KINDS}
        seconds: dict[str, list[float]] = {kind: [] for kind in loops}
        for step in range(args.steps + 3):
            for kind, one in loops.items():
                start = time.process_time()
                one.train_step(x, y)
                if step >= 3:
                    seconds[kind].append(time.process_time() - start)
        row = {kind: round(1e3 * median(times), 2) for kind, times in seconds.items()}
        ratios = {f"ratio_{kind}": round(row[kind] / row["plain"], 4) for kind in KINDS[1:]}
        found[name] = {**row, **ratios, "unit": "ms"}
        print(name, found[name], flush=True)
    found["versions"] = versions()
    args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
