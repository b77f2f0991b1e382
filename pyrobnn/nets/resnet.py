"""The CIFAR ResNets of He et al. 2015 (section 4.2): 6n + 2 layers, widths 16-32-64."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pyrobnn.nets.channel_map import ChannelMap


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and an option-A shortcut.

    Where the stage changes, the shortcut takes every second pixel and a `ChannelMap` puts the old channels in
    the middle of the new ones, a quarter of the new width of zeros on each side.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: ChannelMap | None = None
        if in_channels != channels:
            self.shortcut = ChannelMap(in_channels, channels, offset=(channels - in_channels) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, in_channels, H, W]` to `[B, channels, H / stride, W / stride]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.shortcut is None else self.shortcut(x[:, :, ::2, ::2])
        return F.relu(out + identity)


class ResNet(nn.Module):
    """A three-stage ResNet for images of about 32x32.

    Args:
        blocks: Blocks in each stage; 3, 5, 9, 18 give ResNet-20, 32, 56, 110.
        num_classes: Outputs of ``linear``.
        in_channels: Channels of the images.
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of normalised images `[B, in_channels, H, W]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20: 269,722 parameters and 40.6 M multiply-accumulates at 32x32x3 and 10 classes.

    >>> sum(p.numel() for p in resnet20().parameters())
    269722
    """
    return ResNet(3, num_classes, in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-32: 464,154 parameters."""
    return ResNet(5, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-56: 853,018 parameters and 125.5 M multiply-accumulates."""
    return ResNet(9, num_classes, in_channels)


def resnet110(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-110: 1,727,962 parameters."""
    return ResNet(18, num_classes, in_channels)
