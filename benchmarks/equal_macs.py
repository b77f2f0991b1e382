"""Every method against every control at equal MACs: does the posterior beat magnitude?

LeNet-5/MNIST at 6 % of the MACs, seeds 0-2: one dense network per seed (6 epochs), from which every
method and control goes on for 8 epochs, 3 for inference in 3 rounds and 5 for tuning. ResNet-20/CIFAR-10
at 60 % from given weights, the same 8 epochs, seed 0; then the best two methods, `ard`, `l1` and `random` with
seeds 1 and 2 (those two are chosen by the test accuracy of seed 0, the data left being none; the later
seeds are the fair part of that comparison). From-scratch rows train the architecture that the default method
found, for as many epochs (LeNet: with those of the dense network). Methods are taken from the registry.

    python benchmarks/equal_macs.py [PART]     # goes on with what is unfinished; only names that hold PART
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rows import RESULTS, RUNS, dense, weights
from torch import nn

import pyrobnn as pb
from pyrobnn.methods.controls import CONTROLS
from pyrobnn.methods.registry import METHODS
from pyrobnn.pipeline.method import Method

FOLDER = RESULTS / "equal_macs"
SEEDS = (0, 1, 2)
DENSE_EPOCHS, EPOCHS, INFER = 6, 8, 3
DEFAULT = "ard"


@dataclass(frozen=True)
class Table:
    """One network: its data and their shape, the share of the MACs that is left, where its weights come from."""

    net: str
    data: str
    shape: tuple[int, int, int]
    left: float
    given: str | None = None

    @property
    def name(self) -> str:
        return f"{self.net}-{self.data}"

    def build(self) -> nn.Module:
        return pb.nets.build(self.net, in_channels=self.shape[0], image_size=self.shape[1])

    def weights(self, seed: int) -> Path:
        return dense(self.net, self.data, seed, DENSE_EPOCHS)[0] if self.given is None else weights(self.given)


LENET = Table("lenet5", "mnist", (1, 28, 28), 0.06)
RESNET = Table("resnet20", "cifar10", (3, 32, 32), 0.60, "resnet20_cifar10.safetensors")


def comparable(table: Table) -> list[Method]:
    """The registered methods that can treat this network, all with the same share of the epochs."""
    net = table.build()
    groups = pb.channel_groups(net, torch.randn(2, *table.shape))
    able = [m for m in METHODS.values() if m.usable is None or len(m.usable(net, groups))]
    same = {"infer_share": INFER / EPOCHS, "rounds": INFER}
    return [replace(method, recipes=method.recipes.with_values(same)) for method in able]


def result(table: Table, name: str, seed: int) -> dict[str, Any] | None:
    """The report of a finished run."""
    path = FOLDER / f"{table.name}-{name}-s{seed}.json"
    return json.loads(path.read_text()) if path.exists() else None


def one(table: Table, name: str, seed: int, data: Any = None, *, trained: bool = True, **options: Any) -> None:
    """Run (or go on with) one row, unless it is done or was not asked for; from the dense network if `trained`."""
    label = f"{table.name}-{name}-s{seed}"
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    if wanted not in label or (FOLDER / f"{label}.json").exists():
        return
    print(f"== {label}", flush=True)
    out = RUNS / f"equal_macs-{label}"
    if trained:
        options["weights"] = table.weights(seed)
    pb.compress(table.net, data or table.data, seed=seed, out=out, resume=(out / "checkpoint.pt").exists(), **options)
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / "report.json", FOLDER / f"{label}.json")


def best_two(table: Table, seed: int) -> list[str]:
    """The two methods, controls aside, that are best on a seed's test set; empty while one of them is unfinished."""
    controls = {method.name for method in CONTROLS}
    names = [method.name for method in comparable(table) if method.name not in controls]
    reports = {name: result(table, name, seed) for name in names}
    accuracy = {name: report["compact"]["accuracy"] for name, report in reports.items() if report is not None}
    return sorted(accuracy, key=lambda name: -accuracy[name])[:2] if len(accuracy) == len(names) else []


def from_scratch(table: Table, seed: int, epochs: int) -> None:
    """The architecture that the default method found, trained from fresh weights on the images that the others had.

    Widths are all that counts where the weights are new, so the result file of that method is enough.
    """
    found = result(table, DEFAULT, seed)
    if found is not None:
        dense = found["dense"]["widths"]
        keep = {name: list(range(found["compact"]["widths"][name])) for name in dense}
        data = pb.load_data(table.data).without_validation()  # the finished ResNet-20 rows had nine tenths of them
        plan = pb.PruningPlan(keep, dense)
        one(table, "from-scratch", seed, data, trained=False, from_scratch=plan, epochs=epochs)


def main() -> None:
    for seed in SEEDS:
        for method in comparable(LENET):
            one(LENET, method.name, seed, method=method, target_macs=LENET.left, epochs=EPOCHS)
        from_scratch(LENET, seed, DENSE_EPOCHS + EPOCHS)
    by_name = {method.name: method for method in comparable(RESNET)}
    for name, method in by_name.items():
        one(RESNET, name, 0, method=method, target_macs=RESNET.left, epochs=EPOCHS)
    from_scratch(RESNET, 0, EPOCHS)
    for seed in SEEDS[1:]:
        for name in dict.fromkeys([*best_two(RESNET, 0), DEFAULT, "l1", "random"]):
            one(RESNET, name, seed, method=by_name[name], target_macs=RESNET.left, epochs=EPOCHS)
        from_scratch(RESNET, seed, EPOCHS)


if __name__ == "__main__":
    main()
