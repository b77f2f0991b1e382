"""Calls networks as users write them: outputs in containers, inputs changed in place, `train()` without a return value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pyrobnn.errors import NetError
from pyrobnn.nets.functional import call_with

_NAMES = ("logits", "out")
_PLAIN = "_takes_plain_batches_only"


def set_mode(net: nn.Module, training: bool) -> nn.Module:
    """`net.train(training)`, and the network, whatever its own `train` returns."""
    net.train(training)
    return net


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[nn.Module]:
    """Set every module to evaluation, and give each its own mode back afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield net
    finally:
        for module, mode in modes:
            module.training = mode


def main_output(output: Any) -> Tensor:
    """The tensor that a network is about: itself, or of several the one called `logits` or `out`, else the first.

    Args:
        output: what a network returns: a tensor, a tuple, list, dict, named tuple or object with attributes.

    Raises:
        NetError: no tensor is found that way.

    >>> import torch
    >>> main_output({"aux": torch.ones(2), "out": torch.zeros(2)})
    tensor([0., 0.])
    """
    if isinstance(output, Tensor):
        return output
    named = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    for name in _NAMES:
        found = named.get(name, None if isinstance(output, Mapping) else getattr(output, name, None))
        if isinstance(found, Tensor):
            return found
    items = output if isinstance(output, list | tuple) else list(named.values())
    for item in items:
        if isinstance(item, Tensor):
            return item
        if isinstance(item, list | tuple | Mapping):
            return main_output(item)
    raise NetError(
        f"expected a network that returns a tensor, or several with `logits` or `out` among them, "
        f"got {type(output).__name__}: wrap it in a module that returns one"
    )


def own_copy(inputs: Any) -> Any:
    """The same inputs, of which a network may change its copy."""
    if isinstance(inputs, Tensor):
        return inputs.clone()
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*(own_copy(part) for part in inputs))
    if isinstance(inputs, list | tuple):
        return type(inputs)(own_copy(part) for part in inputs)
    if isinstance(inputs, dict):
        return {name: own_copy(part) for name, part in inputs.items()}
    return inputs


def output_of(net: nn.Module, x: Any) -> Tensor:
    """The main output of a network for a batch that stays as it is, in the layout that the network takes."""
    return main_output(call_with(net, {}, arguments(batch_for(net, x))))


def arguments(x: Any) -> tuple[Any, ...]:
    """What a network is called with for a batch: a tuple holds its arguments, anything else is the only one."""
    return x if type(x) is tuple else (x,)


def batch_for(net: nn.Module, x: Any) -> Any:
    """A copy of a batch for a network, contiguous where it takes no other (see `choose_layout`)."""
    x = own_copy(x)
    return x.contiguous() if isinstance(x, Tensor) and takes_plain_only(net) else x


def takes_plain_only(net: nn.Module) -> bool:
    """Whether this network, or the one it was copied from, was found to need contiguous batches."""
    return bool(getattr(net, _PLAIN, False))


def mark_layout(net: nn.Module, plain_only: bool) -> None:
    """Remember what was found; copies of the network remember it too."""
    setattr(net, _PLAIN, plain_only)


def has_layout(net: nn.Module) -> bool:
    """Whether the layout of this network was already tried."""
    return hasattr(net, _PLAIN)
