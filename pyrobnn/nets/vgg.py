"""VGG-16 with BatchNorm for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

#: Output channels of each convolution; 0 stands for 2x2 max-pooling.
LAYOUT = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG16(nn.Module):
    """The usual CIFAR form of VGG-16: thirteen 3x3 convolutions, then 512-512-classes.

    ``features`` has the layers and numbers of torchvision's ``vgg16_bn().features`` (convolutions with bias);
    ``classifier`` is Linear, BatchNorm1d, ReLU, Linear. At 32x32x3 and 10 classes: 14,991,946 parameters and
    313.5 M multiply-accumulates. Larger images are averaged to one position before the classifier; smaller ones are
    not pooled where one row or column is left.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, image_width: int | None = None
    ) -> None:
        super().__init__()
        sides = (image_size, image_width or image_size)
        layers: list[nn.Module] = []
        channels = in_channels
        for width in LAYOUT:
            if width == 0:
                rows, columns = (min(2, side) for side in sides)
                layers.append(nn.MaxPool2d(2, 2) if rows == columns == 2 else nn.MaxPool2d((rows, columns)))
                sides = (sides[0] // rows, sides[1] // columns)
            else:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, num_classes)
        )
        self._initialise()

    def _initialise(self) -> None:
        """Kaiming (fan out) for the convolutions: with torch's default a net this deep starts slowly."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of normalised images `[B, in_channels, H, W]`."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def vgg16(num_classes: int = 10, in_channels: int = 3, image_size: int = 32, image_width: int | None = None) -> VGG16:
    """Builds `VGG16` for images of that height (and width, where they are not square).

    >>> sum(p.numel() for p in vgg16().parameters())
    14991946
    """
    return VGG16(num_classes, in_channels, image_size, image_width)
