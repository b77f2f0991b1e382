"""Rows against the best published tables: given networks, `laplace`, the package's recipe, last epoch, test images once.

    python benchmarks/marks.py [PART]     # results/marks[-rate-0.02]/<row>-s<seed>.json; rows whose name holds PART

See `rows.py` for what is skipped and gone on with. By the time of a step, one core should take 40 minutes for a row of
ResNet-20 and two hours for one of ResNet-56 or VGG-16.
"""

from __future__ import annotations

from typing import Any

from rows import Row, run


def row(name: str, net: str, epochs: int, seeds: tuple[int, ...] = (0,), **options: Any) -> Row:
    """A given network, cut by `laplace`; `options` are the targets and what else `pyrobnn.compress` takes."""
    options = {"method": "laplace", "epochs": epochs, **options}
    return Row(name, net, "cifar10", options, weights=f"{net}_cifar10.safetensors", seeds=seeds)


ROWS = [
    row("laplace-resnet20-cifar10-m70", "resnet20", 30, (0, 1, 2), target_macs=0.7),
    row("laplace-resnet56-cifar10-m50", "resnet56", 40, target_macs=0.5),
    row("laplace-vgg16-cifar10-m25-p07", "vgg16", 40, target_macs=0.25, target_params=0.07),
    row("laplace-resnet56-cifar10-m25", "resnet56", 40, target_macs=0.25),
]
# Twice the recipe's rate, which was not worse on validation images of ResNet-20 (recipes.py): a table of its own.
FASTER = [row("laplace-resnet56-cifar10-m50", "resnet56", 40, target_macs=0.5, recipe={"tune.lr": 0.02})]

if __name__ == "__main__":
    run(ROWS, "marks")
    run(FASTER, "marks-rate-0.02")
