"""Run the rows of a table, one at a time, and go on where an earlier call stopped.

A row is a name and the arguments of `pyrobnn.compress`; its result is `results/<name>-s<seed>.json`,
a copy of the run's report.json. Rows that have a result are skipped; a run that was interrupted goes
on from its last checkpoint. Weights are looked for beside the data: `$PYROBNN_DATA/../weights`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import pyrobnn as pb
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.schedules import OneCycle
from pyrobnn.io import launch
from pyrobnn.io.files import write_json
from pyrobnn.nets import save_weights

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "bench"


@dataclass(frozen=True)
class Row:
    """One line of a table: `compress(net, data, **options)` for each seed.

    With `dense` the run starts from a dense network that was trained once for so many epochs, on all
    training images, and is shared by the rows that ask for the same; its epochs and seconds are in the
    result file (`dense_training`).
    """

    name: str
    net: str
    data: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    dense: int = 0
    seeds: tuple[int, ...] = (0,)


def run(rows: list[Row], recipe: str = "") -> None:
    """Run what is not done; `python benchmarks/x.py PART` runs only rows whose name holds PART.

    With the name of a recipe results and runs have a folder of that name: rows of one recipe are rows of one table.
    Under `torchrun` the processes share each run, and the first one writes its result.
    """
    first = launch.rank() == 0
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    results, runs = RESULTS / recipe, RUNS / recipe
    results.mkdir(parents=True, exist_ok=True)
    for row in rows:
        for seed in row.seeds:
            name = f"{row.name}-s{seed}"
            if wanted not in name or (results / f"{name}.json").exists():
                continue
            if first:
                print(f"== {name}", flush=True)
            options = dict(row.options)
            extra: dict[str, Any] = {"script": Path(sys.argv[0]).stem}
            if row.weights is not None:
                options["weights"] = weights(row.weights)
            elif row.dense:
                options["weights"], extra["dense_training"] = dense(row.net, row.data, seed, row.dense)
            pb.compress(row.net, row.data, seed=seed, out=runs / name, resume=(runs / name).exists(), **options)
            if first:
                report = json.loads((runs / name / "report.json").read_text())
                write_json(results / f"{name}.json", {**report, **extra})


def dense(net: str, data: str, seed: int, epochs: int, *, validation: bool = False) -> tuple[Path, dict[str, float]]:
    """The dense network of a seed, trained once: its file, and what it took.

    On all training images, or on those that are left beside the validation images.
    """
    path = RUNS / f"dense-{net}-{data}-e{epochs}{'-valid' if validation else ''}-s{seed}.safetensors"
    note = path.with_suffix(".json")
    if not note.exists():
        loaded = pb.load_data(data) if validation else pb.load_data(data).without_validation()
        channels, size, _ = loaded.image_shape
        torch.manual_seed(seed)
        module = pb.nets.build(net, in_channels=channels, image_size=size, num_classes=loaded.num_classes)
        model = pb.BayesianModel(module, data_size=len(loaded.train))
        config = FitConfig(epochs=epochs, lr=2e-3, lr_schedule=OneCycle(0.2, floor=0.01), seed=seed, validate=False)
        start = time.perf_counter()
        result = pb.fit(model, NoLatents(), loaded, config=config, title=f"dense {seed}")
        RUNS.mkdir(parents=True, exist_ok=True)
        trained = pb.deterministic_net(result.model, result.guide)
        save_weights(trained, path, mean=loaded.mean, std=loaded.std, trained_on="train" if validation else "all")
        write_json(note, {"epochs": epochs, "seconds": round(time.perf_counter() - start, 1)})
    return path, json.loads(note.read_text())


def weights(name: str) -> Path:
    """A weights file beside the data."""
    folder = Path(os.environ.get("PYROBNN_DATA", "")).parent / "weights"
    path = folder / name
    if not path.exists():
        sys.exit(f"{name} not found in {folder}: this row starts from trained weights; put them beside $PYROBNN_DATA")
    return path
