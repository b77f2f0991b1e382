"""Which training recipe a network wants."""

from __future__ import annotations

import math

from torch import nn

_NORMS = nn.modules.batchnorm._BatchNorm


def is_large(net: nn.Module) -> bool:
    """Deep enough, and normalised, so that SGD with a one-cycle rate is the usual recipe."""
    convolutions = sum(isinstance(m, nn.modules.conv._ConvNd) for m in net.modules())
    return convolutions > 4 and any(isinstance(m, _NORMS) for m in net.modules())


def batch_size_for(examples: int) -> int:
    """128, or less where an epoch would have fewer than about 30 steps."""
    return max(16, min(128, 2 ** int(math.log2(max(16, examples / 30)))))
