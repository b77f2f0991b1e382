"""What a run on ImageNet would cost on 1, 8 and 64 accelerators: an estimate from measured MACs and step costs.

Measured: multiply-accumulates and parameters of the networks at 224 pixels, and the ratios of a step to a plain one
(`results/noise_step.json`, `results/step_cost.json`). Assumed, and to be replaced by numbers of your own: how many plain
training images of ResNet-50 a device does in a second, and how quick its links are. Nothing of it was run on accelerators.
Writes benchmarks/results/scaling.json.

    python benchmarks/scaling.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import pyrobnn as pb
from pyrobnn.report.cost import count

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"resnet50": "resnet50", "vgg16": "torchvision.models:vgg16", "mobilenet_v2": "mobilenet_v2"}
IMAGES, VALID_SHARE, TEST_IMAGES, NOISE_LEVELS = 1_281_167, 0.02, 50_000, 3
EPOCHS, INFER_EPOCHS, ROUNDS, LEFT = 20, 5, 4, 0.5  # of given weights; --epochs 20 --target-macs 0.5
BATCH = 128  # images for each accelerator
FISHER, REESTIMATED = 1000, 6400  # images: at the start, and in each of the two re-estimations of a round
ASSUMED = {"plain_images_per_second_of_resnet50": 2500, "gb_per_second_within_8": 100, "gb_per_second_between": 12.5}
DEVICES = (1, 8, 64)


def forward_passes(noise: float, teacher: float) -> dict[str, float]:
    """What a run does, in forward passes of the dense network over one image."""
    train = IMAGES * (1 - VALID_SHARE)
    rounds = [LEFT ** (k / ROUNDS) for k in range(ROUNDS)]  # what is left when the fit of a round begins
    return {
        "inference": 3 * noise * train * INFER_EPOCHS / ROUNDS * sum(rounds),
        # The step with a teacher was measured on a network of the teacher's size: what it adds is the teacher.
        "tuning": train * (EPOCHS - INFER_EPOCHS) * (3 * LEFT + 3 * (teacher - 1)),
        "between": FISHER * 3 + sum(left * (2 * REESTIMATED + 2 * VALID_SHARE * IMAGES) for left in rounds),
        "validation": (EPOCHS - INFER_EPOCHS) * LEFT * VALID_SHARE * IMAGES,
        "test": TEST_IMAGES * (1 + LEFT) * (1 + NOISE_LEVELS),
    }


def estimate(macs: float, params: float, speed: float, passes: dict[str, float]) -> list[dict[str, float]]:
    """Hours, and the part of them that gradients travel, for each number of devices; `speed` is in MACs a second."""
    rows = []
    for devices in DEVICES:
        computing = sum(passes.values()) * macs / speed / devices
        steps = EPOCHS * IMAGES / (BATCH * devices)
        bytes_sent = 2 * (devices - 1) / devices * 4 * params  # a ring, fp32, before anything is cut
        link = ASSUMED["gb_per_second_within_8"] if devices <= 8 else ASSUMED["gb_per_second_between"]
        travelling = steps * bytes_sent / (link * 1e9)
        rows.append(
            {
                "devices": devices,
                "hours": (computing + travelling) / 3600,
                "travelling": travelling / (computing + travelling),
                "images_per_second": EPOCHS * IMAGES / (computing + travelling),
            }
        )
    return rows


def ratios() -> dict[str, float]:
    """Of a step with noise, and of one with a teacher, to a plain one: from the result files of other scripts."""
    noise, steps = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("noise_step", "step_cost"))
    return {
        "noise_ratio": max(noise[name]["ratio_in"] for name in ("vgg16", "resnet20")),
        "teacher_ratio": steps["resnet20"]["steps"]["tuning with teacher fp32"]["ratio"],
    }


def main() -> None:
    """Measures what can be measured here, and multiplies."""
    measured = ratios()
    passes = forward_passes(measured["noise_ratio"], measured["teacher_ratio"])
    networks: dict[str, Any] = {}
    for name, spec in NETWORKS.items():
        torch.manual_seed(0)
        cost = count(pb.nets.build(spec, num_classes=1000), torch.randn(1, 3, 224, 224))
        networks[name] = {"macs": cost.macs, "params": cost.params}
    speed = ASSUMED["plain_images_per_second_of_resnet50"] * 3 * networks["resnet50"]["macs"]
    for entry in networks.values():
        entry["estimate"] = estimate(entry["macs"], entry["params"], speed, passes)
    result = {
        "script": "scaling",
        "epochs": EPOCHS,
        "target_macs": LEFT,
        "batch_per_device": BATCH,
        "valid_share": VALID_SHARE,
        **measured,
        "assumed": ASSUMED,
        "forward_passes_per_training_image": {part: number / IMAGES for part, number in passes.items()},
        "networks": networks,
    }
    (RESULTS / "scaling.json").write_text(json.dumps(result, indent=2) + "\n")


def table() -> str:
    """For docs/scaling.md."""
    found = json.loads((RESULTS / "scaling.json").read_text())
    lines = [
        "| network | MACs an image | parameters | " + " | ".join(f"{d} device{'s' * (d > 1)}" for d in DEVICES) + " |",
        "|---" * (3 + len(DEVICES)) + "|",
    ]
    for name, entry in found["networks"].items():
        cells = [
            f"{60 * row['hours']:.0f} min, {row['images_per_second'] / 1000:.1f} k images/s"
            + (f", {100 * row['travelling']:.0f} % for gradients" if row["devices"] > 1 else "")
            for row in entry["estimate"]
        ]
        lines.append(
            f"| {name} | {entry['macs'] / 1e9:.2f} G | {entry['params'] / 1e6:.1f} M | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
