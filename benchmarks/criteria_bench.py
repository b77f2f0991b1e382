"""What `criteria.py` measures on: a network, its channel table, and halves of images that no criterion reads.

ResNet-20 and VGG-16 (CIFAR-10) have the given weights, which have seen all training images: what is chosen or compared with
while working on a criterion (the oracle) is measured on the even test images, what is reported on the odd ones. LeNet-5
(MNIST) is trained here without its validation images: the oracle looks at those, and the test images are reported.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from rows import dense, weights
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels import GateMap
from pyrobnn.nets import load_weights

SEEDS = {"resnet20": 5, "lenet5": 5, "vgg16": 5}
NORM_IMAGES, ORACLE_IMAGES = 2000, 250
ORACLE_UNITS = {"vgg16": 12}  # of each group, evenly spaced: all of them would take a day
BF16 = ("vgg16",)  # measured in bf16, at a third of the time


class Bench:
    """A network, its data and its table."""

    def __init__(self, name: str) -> None:
        self.name = name
        data = pb.load_data("mnist" if name == "lenet5" else "cifar10")
        channels, size, _ = data.image_shape
        self.net = pb.nets.build(name, in_channels=channels, image_size=size)
        if name == "lenet5":
            path = dense(name, "mnist", 0, 10, validation=True)[0]
        else:
            path = weights(f"{name}_cifar10.safetensors")
        info = load_weights(self.net, path)
        if info.mean is not None and info.std is not None:
            data = data.with_normalisation(info.mean, info.std)
        self.net = self.net.to(memory_format=torch.channels_last).eval()
        if name == "lenet5":
            self.even, self.odd = data.valid, data.test
        else:
            test = data.test
            self.even, self.odd = (
                replace(test, images=test.images[start::2], labels=test.labels[start::2]) for start in (0, 1)
            )
        self.data = data
        self.table = pb.channel_groups(self.net, data.example)
        self._whole: Tensor | None = None

    @torch.no_grad()
    def outputs(self, net: nn.Module, split: Any) -> tuple[Tensor, Tensor]:
        """Logits and labels."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.name in BF16):
            found = [(net(x).float(), y) for x, y in split.batches(500, channels_last=True)]
        return torch.cat([out for out, _ in found]), torch.cat([y for _, y in found])

    def cut(self, plan: pb.PruningPlan, seed: int, net: nn.Module | None = None) -> nn.Module:
        """The compact network (of this network, or of another one with its channels) with its BatchNorm statistics."""
        small = pb.compact(self.net if net is None else net, plan, None, groups=self.table)
        return self.settled(small.to(memory_format=torch.channels_last), seed)

    def settled(self, net: nn.Module, seed: int) -> nn.Module:
        """With BatchNorm statistics measured again, in place, on images as they are: so all cells were measured."""
        autocast = torch.bfloat16 if self.name in BF16 else None
        found = pb.reestimate_batchnorm(
            net, self.data.train, examples=NORM_IMAGES, batch_size=250, seed=seed, autocast=autocast, augment=False
        )
        return found.eval()

    def measure(self, net: nn.Module) -> dict[str, float]:
        """Accuracy and agreement with the whole network in per cent, NLL in nats, on the images that are reported."""
        out, y = self.outputs(net, self.odd)
        if self._whole is None:
            self._whole = self.outputs(self.net, self.odd)[0].argmax(1)
        return {
            "accuracy": 100 * float((out.argmax(1) == y).float().mean()),
            "nll": float(F.cross_entropy(out, y)),
            "agreement": 100 * float((out.argmax(1) == self._whole).float().mean()),
        }

    @torch.no_grad()
    def oracle(self) -> dict[str, list[float]]:
        """The loss of every single removal: the mean divergence of the outputs without a unit from those with it, nats.

        That is the increase of the expected NLL with labels from the whole network, without their noise; NaN for units
        that were left out.
        """
        x, _ = next(self.even.take(ORACLE_IMAGES).batches(ORACLE_IMAGES, channels_last=True))
        gates = GateMap(self.table)
        tensors = {n: t.detach() for n, t in (*self.net.named_parameters(), *self.net.named_buffers())}
        whole = F.log_softmax(self.net(x), -1)
        found = {}
        for group in self.table:
            rows = [math.nan] * group.channels
            every = max(1, group.channels // ORACLE_UNITS.get(self.name, group.channels))
            for unit in range(0, group.channels, every):
                factor = torch.ones(group.channels)
                factor[unit] = 0.0
                out = torch.func.functional_call(self.net, gates.apply(tensors, {group.name: factor}), (x,))
                rows[unit] = float(F.kl_div(F.log_softmax(out, -1), whole, log_target=True, reduction="batchmean"))
            found[group.name] = rows
            print(f"oracle {self.name} {group.name}", flush=True)
        return found
