"""The two LeNets of the compression literature."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pyrobnn.errors import NetError
from pyrobnn.nets.channel_map import ChannelMap


class LeNet5(nn.Module):
    """LeNet-5 with the widths of Caffe, 20-50-800-500 (800 is what the flattening makes of 50 channels).

    Two 5x5 convolutions without padding, each with ReLU and 2x2 max-pooling, then two linear layers. At
    28x28x1 and 10 classes: 431,080 parameters and 2.293 M multiply-accumulates.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, image_width: int | None = None
    ) -> None:
        super().__init__()
        width = image_width or image_size
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in (image_size, width))
        if min(rows, columns) < 1:
            raise NetError(f"lenet5 needs images of at least 16x16, got {image_size}x{width}: use small_cnn")
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * rows * columns, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of normalised images `[B, in_channels, H, W]`."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class LeNet300(nn.Module):
    """LeNet-300-100: a multilayer perceptron with hidden widths 300 and 100 (266,610 parameters on MNIST).

    Nine in ten of its weights read pixels, many of which say nothing. The map in front passes every
    pixel on and can be cut like a layer; what is left of it picks the pixels that count.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, image_width: int | None = None
    ) -> None:
        super().__init__()
        pixels = in_channels * image_size * (image_width or image_size)
        self.pixels = ChannelMap(pixels, pixels)
        self.fc1 = nn.Linear(pixels, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of normalised images `[B, in_channels, H, W]`."""
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(self.pixels(x.flatten(1)))))))


def lenet5(num_classes: int = 10, in_channels: int = 1, image_size: int = 28, image_width: int | None = None) -> LeNet5:
    """Builds `LeNet5` for images of that height (and width, where they are not square).

    >>> sum(p.numel() for p in lenet5().parameters())
    431080
    """
    return LeNet5(num_classes, in_channels, image_size, image_width)


def lenet300(
    num_classes: int = 10, in_channels: int = 1, image_size: int = 28, image_width: int | None = None
) -> LeNet300:
    """Builds `LeNet300` for images of that height (and width, where they are not square).

    >>> sum(p.numel() for p in lenet300().parameters())
    266610
    """
    return LeNet300(num_classes, in_channels, image_size, image_width)
