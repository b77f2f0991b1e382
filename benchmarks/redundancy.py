"""Accuracy against kernels removed, before any tuning: a Bayesian net and a plain net of the same size.

The claim of Carannante et al. (2021): a network that carries variances makes kernels redundant and tolerates
their removal, a plain one does not. As there: one convolution of N kernels, ReLU, max-pooling, one linear
layer, on MNIST; the same start, batches and number of steps for both. Kernels go in the order of their norm,
smallest first, and in random order (mean of five). Writes benchmarks/results/redundancy.json and
docs/images/redundancy.png.

    python benchmarks/redundancy.py [epochs] [images]
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.inference.schedules import WarmUp
from pyrobnn.metrics.evaluate import evaluate
from pyrobnn.priors.tensor_normal import TensorNormal

KERNELS, SEED = 64, 0
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
images = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
torch.set_num_threads(1)


class OneLayer(nn.Module):
    """N kernels of 5x5, ReLU, 2x2 max-pooling, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, KERNELS, 5), nn.Linear(KERNELS * 144, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))


def accuracies(net: nn.Module, order: list[int]) -> list[float]:
    """Accuracy with the first 0, 1, 2, … kernels of `order` removed."""
    found = []
    for gone in range(0, KERNELS, 3):
        keep = sorted(order[gone:])
        plan = pb.PruningPlan(keep={"conv": keep}, channels={"conv": KERNELS}, score={}, reason={})
        found.append(evaluate(pb.compact(net, plan, data.example), measured).accuracy)
    return found


data = pb.load_data("mnist")
train = replace(data, train=data.train.take(images))
measured = data.valid.take(2000)
torch.manual_seed(SEED)
start = OneLayer()
settings = {"epochs": epochs, "batch_size": 128, "lr": 1e-3, "seed": SEED, "validate": False}

plain = pb.BayesianModel(start, data_size=len(train.train))
pb.fit(plain, pb.guides.NoLatents(), train, **settings)
model = pb.BayesianModel(start, TensorNormal("fan_in"), data_size=len(train.train))
guide = pb.guides.KernelMeanField(model, scale_lr=5.0)
fitted = pb.fit(model, guide, train, estimator="moments", kl_schedule=WarmUp(0.5), **settings)
nets = {
    "Bayesian (moments)": pb.deterministic_net(fitted.model, fitted.guide),
    "plain": pb.deterministic_net(plain, pb.guides.NoLatents()),
}
removed = list(range(0, KERNELS, 3))
curves: dict[str, dict[str, list[float]]] = {}
norms: dict[str, list[float]] = {}
for name, net in nets.items():
    norm = net.conv.weight.detach().flatten(1).norm(dim=1)
    norms[name] = sorted(norm.tolist())
    shuffles = [torch.randperm(KERNELS, generator=torch.Generator().manual_seed(k)).tolist() for k in range(5)]
    drawn = torch.tensor([accuracies(net, order) for order in shuffles])
    curves[name] = {"least norm first": accuracies(net, norm.argsort().tolist()), "random": drawn.mean(0).tolist()}
    print(name, {k: [round(v, 3) for v in c] for k, c in curves[name].items()}, flush=True)

result = {
    "data": "mnist",
    "images": images,
    "kernels": KERNELS,
    "epochs": epochs,
    "seed": SEED,
    "measured_on": f"{len(measured)} validation images",
    "removed": removed,
    "accuracy": curves,
    "norms": norms,
}
here = Path(__file__).parent
(here / "results" / "redundancy.json").write_text(json.dumps(result, indent=1) + "\n")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
colours = {"Bayesian (moments)": "#2166ac", "plain": "#b2182b"}
for name, orders in curves.items():
    for order, values in orders.items():
        style = "-" if order == "least norm first" else ":"
        left.plot(removed, [100 * v for v in values], style, color=colours[name], label=f"{name}, {order}")
    right.plot(range(1, KERNELS + 1), norms[name], ".", color=colours[name], label=name)
left.set(xlabel=f"kernels removed of {KERNELS}", ylabel="accuracy without tuning, %", ylim=(0, 101))
right.set(xlabel="kernel, sorted", ylabel="Frobenius norm of the (posterior mean) kernel", yscale="log")
for axis in (left, right):
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
path = here.parent / "docs" / "images" / "redundancy.png"
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=130)
