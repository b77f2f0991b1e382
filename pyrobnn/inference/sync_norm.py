"""BatchNorm whose statistics are those of the whole batch, where several processes have a part of it each on CUDA devices."""

from __future__ import annotations

import torch
from torch import nn

from pyrobnn.io.processes import current

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_WAS = "_class_alone"  # of a module that is synchronised now


def synchronise(net: nn.Module, device: torch.device) -> nn.Module:
    """Turn BatchNorm layers into torch's `SyncBatchNorm`, in place; only in several processes, and on CUDA devices.

    Elsewhere torch has none: each process normalises by its own part of the batch.
    """
    return net if current().alone or device.type != "cuda" else converted(net)


def converted(net: nn.Module) -> nn.Module:
    """Every BatchNorm layer as a `SyncBatchNorm`, in place: its tensors, hooks and mode stay."""
    for module in net.modules():
        if type(module) in _KINDS:
            module.__dict__[_WAS] = type(module)
            module.__class__ = nn.SyncBatchNorm
            module.__dict__["process_group"] = None
    return net


def alone(net: nn.Module) -> nn.Module:
    """The layers that :func:`converted` turned are what they were, in place."""
    for module in net.modules():
        kind = module.__dict__.pop(_WAS, None)
        if kind is not None:
            module.__class__ = kind
            del module.__dict__["process_group"]
    return net
