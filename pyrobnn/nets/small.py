"""A small CNN for small images, used by the quickstart and by most tests."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SmallCNN(nn.Module):
    """Two 3x3 convolutions with BatchNorm, 2x2 max-pooling after each, then two linear layers.

    Widths 16-32-64. Made for 8x8 digits; any image of at least 4x4 works. The second convolution is followed
    by a flattening, so its channel group ties each channel to a block of linear inputs.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, image_size: int = 8, image_width: int | None = None
    ) -> None:
        super().__init__()
        rows, columns = image_size // 4, (image_width or image_size) // 4
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc1 = nn.Linear(32 * rows * columns, 64)
        self.fc2 = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of normalised images `[B, in_channels, H, W]`."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def small_cnn(
    num_classes: int = 10, in_channels: int = 1, image_size: int = 8, image_width: int | None = None
) -> SmallCNN:
    """Builds `SmallCNN` for images of that height (and width, where they are not square).

    >>> sum(p.numel() for p in small_cnn().parameters())
    13754
    """
    return SmallCNN(num_classes, in_channels, image_size, image_width)
