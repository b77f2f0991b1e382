"""Where a mean-field posterior gets to from one constant width per tensor, and from the Fisher information of its weights.

    python benchmarks/start_widths.py        # two minutes on one core; writes results/start_widths.json

A small CNN trained on digits, prior N(0, 2 / fan-in), KL weight 1, Adam with `guide_lr=1e-3` and the cosine schedule.
`scale_lr` is the factor on the rate of log σ.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import nn

import pyrobnn as pb

RESULT = Path(__file__).parent / "results" / "start_widths.json"
RUNS = [
    ("constant", 1.0, 5),
    ("constant", 30.0, 5),
    ("constant", 30.0, 20),
    ("constant", 100.0, 20),
    ("fisher", 1.0, 5),
]


def trained(data: pb.Data) -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*first, nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(5):
        for x, y in data.train.batches(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
    return net


def main() -> None:
    torch.set_num_threads(1)
    data = pb.load_data("digits")
    net = trained(data)
    groups = pb.channel_groups(net, data.example)
    rows = []
    for start, scale_lr, epochs in RUNS:
        began = time.process_time()
        prior = pb.priors.Gaussian("fan_in")
        model = pb.BayesianModel(net, prior, data_size=len(data.train), groups=groups)
        guide = pb.guides.MeanField(model, scale_lr=scale_lr)
        if start == "fisher":
            pb.start_widths(model, guide, data.train.batches(400))
        fit = pb.fit(model, guide, data, epochs=epochs, precision="fp32", progress=False)
        moved = pb.summarize(model, guide, draws=0).convergence
        last = fit.history[-1]
        rows.append(
            {
                "start": start,
                "scale_lr": scale_lr,
                "epochs": epochs,
                "kl": round(last["kl"], 3),
                "nll": round(last["nll"], 3),
                "valid_accuracy": round(last["valid_accuracy"], 4),
                "log_scale_moved": round(moved.scale_change, 3),
                "kl_fall_per_epoch": round(moved.kl_fall, 4),
                "cpu_seconds": round(time.process_time() - began, 1),
            }
        )
        print(rows[-1], flush=True)
    RESULT.write_text(json.dumps({"unit": "nats an image", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
