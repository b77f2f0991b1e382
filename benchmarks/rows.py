"""Run the rows of a table, one at a time, and go on where an earlier call stopped.

A row is a name and the arguments of `pyrobnn.compress`; its result is `results/<name>-s<seed>.json`,
a copy of the run's report.json. Rows that have a result are skipped; a run that was interrupted goes
on from its last checkpoint. Weights are looked for beside the data: `$PYROBNN_DATA/../weights`.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyrobnn as pb

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "bench"


@dataclass(frozen=True)
class Row:
    """One line of a table: `compress(net, data, **options)` for each seed."""

    name: str
    net: str
    data: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    seeds: tuple[int, ...] = (0,)


def run(rows: list[Row]) -> None:
    """Run what is not done; `python benchmarks/x.py PART` runs only rows whose name holds PART."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    RESULTS.mkdir(exist_ok=True)
    for row in rows:
        for seed in row.seeds:
            name = f"{row.name}-s{seed}"
            if wanted not in name or (RESULTS / f"{name}.json").exists():
                continue
            print(f"== {name}", flush=True)
            options = dict(row.options)
            if row.weights is not None:
                options["weights"] = weights(row.weights)
            pb.compress(row.net, row.data, seed=seed, out=RUNS / name, resume=(RUNS / name).exists(), **options)
            shutil.copyfile(RUNS / name / "report.json", RESULTS / f"{name}.json")


def weights(name: str) -> Path:
    """A weights file beside the data."""
    folder = Path(os.environ.get("PYROBNN_DATA", "")).parent / "weights"
    path = folder / name
    if not path.exists():
        sys.exit(f"{name} not found in {folder}: this row starts from trained weights; put them beside $PYROBNN_DATA")
    return path
