"""Folding of BatchNorm against the network itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.inference.folding import folded


def lived(net: nn.Module, x: Tensor) -> nn.Module:
    """With statistics that are not those of a fresh layer."""
    with torch.no_grad():
        for _ in range(3):
            net.train()(x)
    return net


def norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize(
    ("build", "size", "left"),
    [
        (lambda: pb.nets.build("resnet20", in_channels=3, image_size=32, num_classes=10), 32, 0),
        (lambda: pb.nets.build("vgg16", in_channels=3, image_size=32, num_classes=10), 32, 0),
        (lambda: torchvision.models.mobilenet_v2(num_classes=10), 32, 0),
        # Its first norm of every layer reads a concatenation.
        (lambda: torchvision.models.densenet121(num_classes=10), 32, 62),
    ],
)
def test_the_same_function_with_fewer_layers(build: Callable[[], nn.Module], size: int, left: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, size, size)
    net = lived(build(), x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quick = folded(net, x[:2])
    assert norms(quick) == left < norms(net)
    with torch.no_grad():
        wanted = net.eval()(x)
        assert float((quick(x) - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(p.requires_grad for p in quick.parameters()) and not quick.training


class Shared(nn.Module):
    """One norm after two convolutions, one convolution used twice, and one norm whose input is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.norm, self.other, self.last = (nn.BatchNorm2d(2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.norm(self.a(x))))
        y = self.c(x)
        return self.last(self.c(self.other(y) + y))


class Looks(nn.Module):
    """Branches on the values: torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if x.sum() > 0 else -x


class Draws(nn.Module):
    """Draws a number, which a trace would freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * torch.rand(())


@pytest.mark.parametrize("kind", [Shared, Looks, Draws])
def test_what_cannot_be_folded_stays(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, 5, 5)
    net = lived(kind(), x)
    quick = folded(net, x)
    assert norms(quick) == norms(net)
    with torch.no_grad():
        torch.manual_seed(1)
        wanted = net.eval()(x)
        torch.manual_seed(1)
        assert torch.equal(quick(x), wanted)


def test_hooks_are_kept() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    net[1].register_forward_hook(lambda module, args, out: out + 1)
    x = torch.randn(2, 2, 5, 5)
    assert torch.equal(folded(net, x)(x), net.eval()(x))
