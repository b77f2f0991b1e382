"""Whether `--max-drop` keeps its promise: the smallest network that holds the drop, by the validation images.

    python benchmarks/contract.py digits     # small_cnn, 1 point, 20 seeds; about half an hour on one core
    python benchmarks/contract.py mnist      # LeNet-5, 0.3 points, 3 seeds of ard and 1 of rbp; about an hour
    python benchmarks/contract.py            # all of it

Runs that `results/contract.json` has are skipped; an interrupted one goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import pyrobnn as pb
from pyrobnn.io.files import write_text

HERE = Path(__file__).parent
RESULT = HERE / "results" / "contract.json"
RUNS = HERE.parent / "runs" / "contract"
CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "digits-gaussian": ("small_cnn", "digits", {"method": "gaussian", "max_drop": 1.0, "epochs": 100}, 20),
    "mnist-ard": ("lenet5", "mnist", {"method": "ard", "max_drop": 0.3}, 3),
    "mnist-rbp": ("lenet5", "mnist", {"method": "rbp", "max_drop": 0.3}, 1),
}


def main(part: str = "") -> None:
    torch.set_num_threads(1)
    runs = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else {}
    for case, (net, data, options, seeds) in CASES.items():
        for seed in range(seeds):
            name = f"{case}-s{seed}"
            if part not in case or name in runs:
                continue
            if data != "digits":  # a run that is worth going on with
                options = {**options, "out": RUNS / name, "resume": (RUNS / name).exists()}
            report = pb.compress(net, data, seed=seed, progress=False, **options).report
            runs[name] = entry(case, report)
            print(name, json.dumps(runs[name]), flush=True)
            RESULT.parent.mkdir(exist_ok=True)
            write_text(RESULT, json.dumps({"summary": summary(runs), "runs": runs}, indent=1) + "\n")


def entry(case: str, report: dict[str, Any]) -> dict[str, Any]:
    """What a run came to, from its report."""
    target = report["target"]
    names = (
        "method",
        "model",
        "data",
        "seed",
        "epochs",
        "epochs_by_phase",
        "seconds",
        "precision",
        "device",
        "versions",
    )
    return {
        "case": case,
        "allowed": target["asked"]["max_drop"],
        "lost": round(target["reached"]["max_drop"], 4),
        "interval": [round(end, 3) for end in target["interval"]],
        "met": target["met"],
        "macs_removed": round(report["reduction"]["macs"], 4),
        "params_removed": round(report["reduction"]["params"], 4),
        "test_accuracy": {part: round(report[part]["accuracy"], 5) for part in ("dense", "compact")},
        "cut": len(report["rounds"]),
        **{name: report[name] for name in names},
    }


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """By case: runs, how many held the drop, the median of the MACs removed."""
    found: dict[str, Any] = {}
    for case in dict.fromkeys(run["case"] for run in runs.values()):
        rows = [run for run in runs.values() if run["case"] == case]
        found[case] = {
            "runs": len(rows),
            "met": sum(run["met"] for run in rows),
            "allowed": rows[0]["allowed"],
            "median_lost": round(statistics.median(run["lost"] for run in rows), 4),
            "median_macs_removed": round(statistics.median(run["macs_removed"] for run in rows), 4),
            "least_macs_removed": min(run["macs_removed"] for run in rows),
        }
    return found


if __name__ == "__main__":
    main(*sys.argv[1:2])
