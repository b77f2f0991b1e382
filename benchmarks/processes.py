"""Threads or processes on a CPU: seconds of a training epoch in one process of one thread, of N threads, in N of one thread.

Plain networks on CIFAR-10, batch 128 (of all processes together), the default precision. The three ways take turns, a
fresh start each; a figure is the shortest epoch but the first one, the median over the turns.

    python benchmarks/processes.py [--count 2] [--rounds 2] [--images 1280] [--networks resnet20,resnet56,vgg16]

Writes benchmarks/results/processes.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import pyrobnn as pb
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.config import FitConfig
from pyrobnn.io import launch
from pyrobnn.io.files import write_json
from pyrobnn.report.report import versions

RESULT = Path(__file__).parent / "results" / "processes.json"
SETTINGS: dict[str, Any] = {"seed": 0, "epochs": 3, "batch": 128, "device": "cpu"}
SAID = "seconds of an epoch:"


def one(network: str, images: int) -> None:
    """One way: in this process, and in those that the launcher started beside it."""
    data = pb.load_data("cifar10").without_validation()
    data = replace(data, train=data.train.take(images))
    torch.manual_seed(SETTINGS["seed"])
    net = pb.nets.build(network, in_channels=3, image_size=32)
    model = pb.BayesianModel(net, data_size=images)
    config = FitConfig(
        epochs=SETTINGS["epochs"], batch_size=SETTINGS["batch"], device=SETTINGS["device"], lr=1e-3, validate=False
    )
    history = pb.fit(model, NoLatents(), data, config=config, progress=False).history
    if launch.rank() == 0:
        print(SAID, min(float(row["seconds"]) for row in history[1:]))


def started(network: str, images: int, processes: int, threads: int) -> float:
    """Seconds of an epoch of so many processes of so many threads each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [*(launcher if processes > 1 else ()), __file__, "--one", network, "--images", str(images)]
    found = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return float(found.stdout.split(SAID)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--networks", default="resnet20,resnet56,vgg16")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.images)
        return
    ways = {"1 x 1": (1, 1), f"1 x {args.count}": (1, args.count), f"{args.count} x 1": (args.count, 1)}
    found: dict[str, Any] = {}
    for network in args.networks.split(","):
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, (processes, threads) in ways.items():
                seconds[way].append(started(network, args.images, processes, threads))
        middle = {way: round(median(times), 3) for way, times in seconds.items()}
        found[network] = {"images": args.images, **SETTINGS, "rounds": args.rounds, "seconds": middle}
        print(network, middle, flush=True)
    found["versions"] = versions()
    write_json(RESULT, found)


if __name__ == "__main__":
    main()
