"""The kind of a network (small, deep, …), and the batch size that goes with it."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

_NORMS = nn.modules.batchnorm._BatchNorm


def kind_of(net: nn.Module) -> Literal["small", "deep"]:
    """`deep` where more than four convolutions and a BatchNorm make SGD with a one-cycle rate the usual recipe."""
    convolutions = sum(isinstance(m, nn.modules.conv._ConvNd) for m in net.modules())
    return "deep" if convolutions > 4 and any(isinstance(m, _NORMS) for m in net.modules()) else "small"


def batch_size_for(examples: int) -> int:
    """128, or less where an epoch would have fewer than about 30 steps."""
    return max(16, min(128, 2 ** int(math.log2(max(16, examples / 30)))))
