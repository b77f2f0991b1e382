"""Sums of variances in full precision, and variances that are one per filter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONV: dict[Callable[..., Any], int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off, for sums of variances."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def wide(x: Tensor) -> Tensor:
    """fp32, or fp64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def square(x: Tensor) -> Tensor:
    """x² in fp32; an expanded tensor stays expanded."""
    x = wide(x)
    narrow = [slice(0, 1) if s == 0 and n > 1 else slice(None) for s, n in zip(x.stride(), x.shape, strict=True)]
    if any(s.stop == 1 for s in narrow):
        return x[tuple(narrow)].square().expand(x.shape)
    return x.square()


def per_filter(func: Callable[..., Any], s2: Tensor) -> bool:
    """Whether one variance serves all taps of a filter (strides 0 behind the first axis)."""
    taps = [stride for stride, n in zip(s2.stride()[1:], s2.shape[1:], strict=True) if n > 1]
    return bool(taps) and not any(taps) and (func in CONV or func is F.linear)
