"""Parameters, multiply-accumulates and bytes, measured on the real tensors of a module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyrobnn.channels.calls import operation_name
from pyrobnn.channels.read import small_batch
from pyrobnn.nets.calling import eval_mode
from pyrobnn.nets.replica import unwrap


@dataclass(frozen=True)
class MeasuredCost:
    """The size of a module.

    Attributes:
        params: elements of all parameter tensors (shared ones once).
        macs: multiply-accumulates of convolutions and linear layers for one example; no bias, no normalisation.
        nonzero_params: parameters that are not exactly zero.
        bytes: memory of parameters and buffers.
    """

    params: int
    macs: int
    nonzero_params: int
    bytes: int


class _MacCounter(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = operation_name(func)
        if name in _LAYERS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if name.startswith("conv_transpose"):  # every input position meets every weight once
                x = args[0] if args else kwargs["input"]
                self.total += weight.numel() * (x.numel() // weight.shape[0])
            else:
                self.total += weight.numel() * (out.numel() // weight.shape[0])
        return out


_LAYERS = {"linear", *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3))}


def _macs(net: nn.Module, args: tuple[Any, ...], examples: int) -> int:
    with _MacCounter() as counter:
        net(*small_batch(args, examples))
    return counter.total // examples


@torch.no_grad()
def count(net: nn.Module, example: Tensor | tuple[Any, ...]) -> MeasuredCost:
    """Measure a module in eval mode on one example; its own mode comes back afterwards.

    Args:
        net: any module.
        example: an input batch, or a tuple of arguments.

    >>> count(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5))
    MeasuredCost(params=20, macs=162, nonzero_params=20, bytes=80)
    """
    args = example if isinstance(example, tuple) else (example,)
    net = unwrap(net)
    with eval_mode(net):
        try:
            macs = _macs(net, args, 1)
        except Exception:  # squeeze() takes the batch axis of one example away, whatever is said of it
            macs = _macs(net, args, 2)
    parameters = list(net.parameters())
    tensors = [*parameters, *net.buffers()]
    return MeasuredCost(
        params=sum(p.numel() for p in parameters),
        macs=macs,
        nonzero_params=sum(int(p.count_nonzero()) for p in parameters),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
    )
