"""Which recipe trains best: dense networks from nothing, and compact ones after their cut; judged on validation images.

The network is ResNet-20 on CIFAR-10. 5,000 of the training images are set aside. Neither the dense network nor a compact
one ever sees them, so a recipe may be chosen on them (the given weights have seen all training images); no figure here is
of test images. Every row changes one setting of the first one, `base`. Rows are written as they end; what is there is
skipped, and a run that was interrupted goes on.

    python benchmarks/recipes.py dense [ROW]     # results/recipes/dense-<row>.json
    python benchmarks/recipes.py tune [ROW [SEED]]  # results/recipes/tune-<row>-s<seed>.json: half of the MACs, 8 epochs
    python benchmarks/recipes.py summary         # results/recipes.json: means and paired differences from `base`

The dense network of the row `sgd` (20 epochs) is what all compact ones start from; `tune` trains it first.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import pyrobnn as pb
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.averaging import WeightAverage
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.schedules import OneCycle
from pyrobnn.inference.terms import LabelSmoothing
from pyrobnn.io.files import write_json
from pyrobnn.metrics.evaluate import evaluate
from pyrobnn.nets import save_weights
from pyrobnn.report.report import versions

HERE = Path(__file__).parent
RESULTS, RUNS = HERE / "results" / "recipes", HERE.parent / "runs" / "recipes"
SEEDS, LEFT, EPOCHS = (0, 1, 2), 0.5, 8


@dataclass(frozen=True)
class Dense:
    """How a network is trained from nothing."""

    config: FitConfig
    smoothing: float = 0.0
    average: float = 0.0


def _sgd(epochs: int) -> FitConfig:
    return FitConfig(optimizer="sgd", lr=0.1, weight_decay=5e-4, lr_schedule=OneCycle(0.3), epochs=epochs)


def _muon(epochs: int, lr: float) -> FitConfig:
    return FitConfig(optimizer="muon", lr=lr, weight_decay=5e-4, lr_schedule=OneCycle(0.3), epochs=epochs)


# What airbench (Jordan 2024) has beyond alternating flips, which all of these have: Muon, averages, smoothed labels.
DENSE = {
    "sgd": Dense(_sgd(20)),
    "sgd-e8": Dense(_sgd(8)),
    "muon-e8": Dense(_muon(8, 0.02)),
    "muon-e8-rate-0.05": Dense(_muon(8, 0.05)),
    "muon-e8-smoothing": Dense(_muon(8, 0.02), smoothing=0.2),
    "muon-e8-average": Dense(_muon(8, 0.02), average=0.25),
}
TUNE: dict[str, dict[str, Any]] = {
    "base": {},
    "average": {"average": 0.25},
    "mixup": {"mix": "mixup"},
    "cutmix": {"mix": "cutmix"},
    "blends": {"blends": 0.7},
    "smoothing": {"smoothing": 0.1},
    "temperature-2": {"temperature": 2.0},
    "temperature-1": {"temperature": 1.0},
    "distillation-1": {"distillation": 1.0},
    "rate-0.005": {"tune.lr": 0.005},
    "rate-0.02": {"tune.lr": 0.02},
    "decay-0": {"tune.weight_decay": 0.0},
    "decay-0.002": {"tune.weight_decay": 2e-3},
    "batch-64": {"batch_size": 64},
    "sgd": {"tune.optimizer": "sgd", "tune.lr": 0.05},
}


def dense(name: str) -> Path:
    """The weights of a dense row, trained if they are not there."""
    weights, row = RUNS / f"dense-{name}.safetensors", DENSE[name]
    if weights.exists() and (RESULTS / f"dense-{name}.json").exists():
        return weights
    data = pb.load_data("cifar10", valid_fraction=0.1)
    torch.manual_seed(0)
    net = pb.nets.build("resnet20", in_channels=3, image_size=32, num_classes=10)
    model = pb.BayesianModel(net, data_size=len(data.train))
    RUNS.mkdir(parents=True, exist_ok=True)
    result = pb.fit(
        model,
        NoLatents(),
        data,
        config=row.config,
        terms=[LabelSmoothing(row.smoothing)] if row.smoothing else [],
        callbacks=[WeightAverage(row.average)] if row.average else [],
        title=f"dense {name}",
        checkpoint=RUNS / f"dense-{name}.pt",
        resume=True,
    )
    trained = result.model.net
    if row.average:
        pb.reestimate_batchnorm(trained, data.train)
    figures = {"valid": evaluate(trained.eval(), data.valid).accuracy, "train": result.history[-1]["train_accuracy"]}
    save_weights(trained, weights, mean=data.mean, std=data.std, trained_on="train")
    settings = {"smoothing": row.smoothing, "average": row.average, "config": row.config.identity()}
    write_json(
        RESULTS / f"dense-{name}.json",
        {**figures, "seconds": round(result.seconds, 1), "device": "cpu", **settings, "versions": versions()},
    )
    return weights


def tune(name: str, seed: int) -> None:
    """One run of a row, if it is not there."""
    path, out = RESULTS / f"tune-{name}-s{seed}.json", RUNS / f"tune-{name}-s{seed}"
    if path.exists():
        return
    print(f"== {name}, seed {seed}", flush=True)
    result = pb.compress(
        "resnet20",
        pb.load_data("cifar10", valid_fraction=0.1),
        "laplace",
        weights=dense("sgd"),
        target_macs=LEFT,
        epochs=EPOCHS,
        recipe=TUNE[name],
        seed=seed,
        out=out,
        resume=out.exists(),
    )
    report = result.report
    kept = ("validation", "settings", "reduction", "epochs", "seconds", "precision", "device", "versions", "seed")
    write_json(path, {"row": name, "change": TUNE[name], **{key: report[key] for key in kept}})


def summary() -> dict[str, Any]:
    """Mean validation accuracy of every row in percent, and its paired difference from `base`."""
    rows: dict[str, dict[int, float]] = {}
    for path in sorted(RESULTS.glob("tune-*.json")):
        row = json.loads(path.read_text())
        rows.setdefault(row["row"], {})[row["seed"]] = 100 * row["validation"]["compact"]
    found: dict[str, Any] = {"dense": {}, "tune": {}}
    for name in DENSE:
        if (path := RESULTS / f"dense-{name}.json").exists():
            found["dense"][name] = round(100 * json.loads(path.read_text())["valid"], 2)
    for name, by_seed in rows.items():
        gains = [value - rows["base"][seed] for seed, value in by_seed.items() if seed in rows.get("base", {})]
        found["tune"][name] = {
            "seeds": len(by_seed),
            "valid": round(mean(by_seed.values()), 2),
            "gain": round(mean(gains), 2) if gains else None,
            "gain_sd": round(stdev(gains), 2) if len(gains) > 1 else None,
        }
    return found


def main() -> None:
    what, row, seeds = [*sys.argv[1:], "", "", ""][:3]
    if what == "dense":
        for name in [row] if row else DENSE:
            dense(name)
    elif what == "tune":
        for seed in [int(seeds)] if seeds else SEEDS:
            for name in [row] if row else TUNE:
                tune(name, seed)
    elif what != "summary":
        sys.exit(f"usage: recipes.py dense|tune|summary [ROW], got {what!r}")
    write_json(HERE / "results" / "recipes.json", summary())


if __name__ == "__main__":
    main()
