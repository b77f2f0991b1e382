"""Normalisation of pixels as the first layer of a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """`(x - mean) / std` per channel.

    Args:
        mean: of each channel, of pixels in 0-1.
        std: the standard deviation likewise.

    >>> Normalise([0.5], [0.25])(torch.ones(1, 1, 2, 2)).unique()
    tensor([2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels `[N, C, H, W]` in 0-1 to normalised images of the same shape."""
        return (x - self.mean) / self.std


class OnPixels(nn.Sequential):
    """A network with its normalisation in front.

    Args:
        net: takes normalised images.
        mean, std: as for :class:`Normalise`.
        classes: names of the outputs, where there are some; kept as `classes`.
    """

    classes: tuple[str, ...]

    def __init__(
        self, net: nn.Module, mean: Sequence[float], std: Sequence[float], classes: Sequence[str] = ()
    ) -> None:
        super().__init__(OrderedDict(normalise=Normalise(mean, std), net=net))
        self.classes = tuple(classes)
