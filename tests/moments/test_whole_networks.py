"""LeNet-5 and ResNet-20 from image to logits, at trained weights: moments against sampled networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import pyrobnn as pb
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.fit import fit
from pyrobnn.moments import propagate

Weights = dict[str, tuple[Tensor, Tensor]]


def kernel_noise(net: nn.Module, relative: float) -> Weights:
    """One variance per kernel: `relative` times the kernel's root mean square."""
    found = {}
    for name, p in net.named_parameters():
        if p.dim() > 1:
            mean = p.detach()
            variance = relative**2 * mean.square().mean(tuple(range(1, p.dim())), keepdim=True)
            found[name] = (mean, variance.expand(mean.shape))
    return found


def errors(net: nn.Module, weights: Weights, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """(mean - MC mean) / MC sd and sd / MC sd of every logit of every image."""
    g = torch.Generator().manual_seed(1)
    rows = []
    with torch.no_grad():
        mean, variance = propagate(net, weights, x)
        for _ in range(draws):
            drawn = {n: m + v.sqrt() * torch.empty_like(m).normal_(generator=g) for n, (m, v) in weights.items()}
            rows.append(functional_call(net, drawn, (x,)).double())
    sampled = torch.stack(rows)
    std = sampled.std(0)
    return (mean - sampled.mean(0)) / std, variance.sqrt() / std


@pytest.fixture(scope="module")
def digits_lenet() -> tuple[nn.Module, Tensor]:
    """LeNet-5 trained for two epochs on digits, enlarged to 28 x 28 (above 90 % on its training set)."""
    data = pb.load_data("digits")

    def large(split: pb.data.Split) -> pb.data.Split:
        images = F.interpolate(split.images.float(), size=28, mode="bilinear").to(split.images.dtype)
        return replace(split, images=images)

    data = replace(data, train=large(data.train), valid=large(data.valid), test=large(data.test))
    torch.manual_seed(0)
    model = pb.BayesianModel(pb.nets.lenet5(), data_size=len(data.train))
    result = fit(model, NoLatents(), data, epochs=2, batch_size=32, augment=False, progress=False, validate=False)
    assert result.history[-1]["train_accuracy"] > 0.9
    return result.model.net.eval(), next(iter(data.test.batches(12)))[0]


@pytest.mark.parametrize("relative", [pytest.param(0.05, marks=pytest.mark.slow), 0.3])
def test_lenet5(digits_lenet: tuple[nn.Module, Tensor], relative: float) -> None:
    """Means to 0.2 standard deviations; standard deviations 0.5 to 1.15, on average 0.7 to 0.95 times the sampled.

    Too small for the same reason as below, but nothing is averaged over a whole map here.
    """
    net, x = digits_lenet
    shift, ratio = errors(net, kernel_noise(net, relative), x, 1000)
    assert shift.abs().max() < 0.2
    assert ratio.min() > 0.5 and ratio.max() < 1.15 and 0.7 < ratio.mean() < 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("relative", "bias"), [(0.03, 0.4), (0.1, 0.9)])
def test_resnet20(shared_data: Path, shared_weights: Path, relative: float, bias: float) -> None:
    """Means to `bias` standard deviations; standard deviations 0.15 to 1, on average 0.3 to 0.6 times the sampled.

    The diagonal forgets that all positions of a map share their kernels: averaging 64 of them as if they were
    independent loses more than half of the standard deviation. The order of magnitude is what is kept.
    """
    net = pb.nets.build("resnet20")
    info = pb.nets.load_weights(net, shared_weights / "resnet20_cifar10.safetensors")
    assert info.mean is not None and info.std is not None
    data = pb.load_data("cifar10").with_normalisation(info.mean, info.std)
    x = next(iter(data.test.batches(4)))[0]
    shift, ratio = errors(net.eval(), kernel_noise(net, relative), x, 300)
    assert shift.abs().max() < bias
    assert ratio.min() > 0.15 and ratio.max() < 1.0 and 0.3 < ratio.mean() < 0.6
