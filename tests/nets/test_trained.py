"""The trained CIFAR-10 networks give the accuracy their files state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyrobnn import nets
from pyrobnn.data import load_data


@pytest.mark.parametrize(("name", "accuracy", "images"), [("resnet20", 0.9173, 10_000), ("vgg16", 0.9274, 1000)])
@pytest.mark.slow
def test_stated_accuracy(name: str, accuracy: float, images: int, shared_data: Path, shared_weights: Path) -> None:
    """ResNet-20 on all test images; VGG-16 on a part, within three standard errors of a proportion."""
    net = nets.build(name)
    info = nets.load_weights(net, shared_weights / f"{name}_cifar10.safetensors")
    assert info.trained_on == "all" and info.mean is not None and info.std is not None
    data = load_data(shared_data / "cifar10.npz").with_normalisation(info.mean, info.std)
    net.eval().to(memory_format=torch.channels_last)
    right = 0
    with torch.inference_mode():
        for x, y in data.test.take(images).batches(500, channels_last=True):
            right += int((net(x).argmax(1) == y).sum())
    tolerance = 0.0002 if images == 10_000 else 3 * (accuracy * (1 - accuracy) / images) ** 0.5
    assert right / images == pytest.approx(accuracy, abs=tolerance)
