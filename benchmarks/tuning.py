"""By which optimiser a cut network is tuned best in few epochs, and at which rate: ResNet-20 at half of its MACs.

The control `l1` says which channels go, all at once; the rest is tuned as a run does it (distillation, one-cycle
rate, images mirrored in turns) from one start, with one seed. The given weights know all training images, so none
of these can judge a recipe: what is compared is how far training comes in its last epoch. Writes
benchmarks/results/tuning.json, row by row; rows that are there are skipped.

    python benchmarks/tuning.py [--epochs 3] [--images 10000]
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rows import weights

import pyrobnn as pb
from pyrobnn.criteria.scores import l1_norms, moments_of
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.folding import folded
from pyrobnn.inference.precision import channels_last, cpu_has_bf16
from pyrobnn.inference.schedules import OneCycle
from pyrobnn.inference.terms import Distillation
from pyrobnn.nets import load_weights
from pyrobnn.report.report import versions
from pyrobnn.summary.saliency import share_of_group

RESULT = Path(__file__).parent / "results" / "tuning.json"
RATES = {"sgd": (0.02, 0.05, 0.1), "muon": (0.005, 0.01, 0.02)}
LEFT, SEED = 0.5, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    args = parser.parse_args()
    setting = {"network": "resnet20", "left": LEFT, "seed": SEED, "epochs": args.epochs, "images": args.images}
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if found and {key: found.get(key) for key in setting} != setting:
        parser.error(f"{RESULT.name} holds rows of another setting: ask for the same, or move it away")
    found = found or {**setting, "versions": versions(), "rows": {}}

    dense = pb.nets.build("resnet20", in_channels=3, image_size=32, num_classes=10)
    info = load_weights(dense, weights("resnet20_cifar10.safetensors"))
    assert info.mean is not None and info.std is not None
    data = pb.load_data("cifar10").without_validation().with_normalisation(info.mean, info.std)
    data = replace(data, train=data.train.take(args.images))
    dense.eval()
    table = pb.channel_groups(dense, data.example)
    norms = l1_norms(table, moments_of(dense))
    nats = {name: share_of_group(norm, table[name], table.facts.shapes) for name, norm in norms.items()}
    start = pb.compact(dense, pb.plan_for_budget(nats, table, target_macs=LEFT), None, groups=table)
    quick = torch.bfloat16 if cpu_has_bf16() else None
    teacher = channels_last(folded(dense, data.example))

    for optimizer, rates in RATES.items():
        for lr in rates:
            name = f"{optimizer} {lr:g}"
            if name in found["rows"]:
                continue
            model = pb.BayesianModel(copy.deepcopy(start), data_size=len(data.train))
            config = FitConfig(
                epochs=args.epochs,
                optimizer=optimizer,
                lr=lr,
                weight_decay=5e-4,
                lr_schedule=OneCycle(0.15),
                seed=SEED,
                validate=False,
            )
            result = pb.fit(
                model, NoLatents(), data, config=config, terms=[Distillation(teacher, 0.7, 4.0, quick)], title=name
            )
            last = result.history[-1]
            row = {"train_accuracy": last["train_accuracy"], "nll": last["nll"], "seconds": round(result.seconds, 1)}
            found["rows"][name] = row
            print(name, row, flush=True)
            RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
