"""What the examples share: digits, a small CNN trained on them, SVI steps, and what is done with a decision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import pyrobnn as pb

DATA = pb.load_data("digits")
X, Y = (torch.cat(part) for part in zip(*DATA.train.batches(512), strict=True))
N = len(X)


class SmallCNN(nn.Module):
    """Two convolutions and a linear layer; `noise` multiplies the channels of the two hidden layers, `[channels]` each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        if noise is not None:
            x = x * noise["conv1"][:, None, None]
        x = self.conv2(x).relu()
        if noise is not None:
            x = x * noise["conv2"][:, None, None]
        return self.fc(x.flatten(1))


WIDTHS = {"conv1": 16, "conv2": 32}


def trained_net() -> SmallCNN:
    """The dense network that every example starts from."""
    torch.manual_seed(1)
    return copy.deepcopy(_dense())


@cache
def _dense() -> SmallCNN:
    torch.manual_seed(0)
    return tuned(SmallCNN(), 8, 3e-3)


def tuned(net: Any, epochs: int, lr: float) -> Any:
    """A few epochs of plain training."""
    optimiser = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(epochs):
        for index in torch.randperm(N).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(X[index]), Y[index]).backward()
            optimiser.step()
    return net


def run_svi(model: Callable[..., Any], guide: Callable[..., Any], steps: int, lr: float) -> SVI:
    """Stock Pyro: minibatches of 64, Adam, Trace_ELBO."""
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO())
    for step in range(steps):
        index = torch.randint(N, (64,))
        loss = svi.step(X[index], Y[index])
        if step % 50 == 0:
            print(f"step {step:4d}  loss {loss / N:8.3f} nats an image")
    return svi


def observe(logits: Tensor, y: Tensor | None) -> None:
    """The likelihood of a minibatch, scaled to all N images."""
    with pyro.plate("data", N, subsample=torch.arange(len(logits))):
        pyro.sample("obs", pyro.distributions.Categorical(logits=logits), obs=y)


@torch.no_grad()
def fold(net: SmallCNN, noise: dict[str, Tensor]) -> SmallCNN:
    """The mean noise of a channel multiplied into the weights that read it."""
    net.conv2.weight.mul_(noise["conv1"].view(1, -1, 1, 1))
    net.fc.weight.view(10, 32, -1).mul_(noise["conv2"].view(1, -1, 1))
    return net


def finish(name: str, net: SmallCNN, score: dict[str, Tensor], threshold: float) -> dict[str, float]:
    """Keep the channels whose score is above the threshold (at least two a layer), cut, tune, and say what is left."""
    keep = {}
    for group, value in score.items():
        best = value.argsort(descending=True)[: max(2, int((value > threshold).sum()))]
        keep[group] = sorted(best.tolist())
    plan = pb.PruningPlan(keep, WIDTHS)
    small = tuned(pb.compact(net, plan, X[:2]), 3, 2e-3)
    found = {
        "dense": accuracy(_dense()),
        "compact": accuracy(small),
        "left": sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters()),
    }
    widths = ", ".join(f"{group} {len(units)} of {WIDTHS[group]}" for group, units in keep.items())
    print(
        f"{name}: {widths}; {found['left']:.0%} of the parameters; accuracy {found['dense']:.3f} -> {found['compact']:.3f}"
    )
    return found


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    """On the test images."""
    right = [(net(x).argmax(1) == y).float() for x, y in DATA.test.batches(512)]
    return float(torch.cat(right).mean())
