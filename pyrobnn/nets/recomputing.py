"""Networks that recompute activations in the backward pass (`torch.utils.checkpoint` and similar).

A network is given other tensors for the time of its forward pass (:mod:`pyrobnn.nets.functional`); what runs again in the
backward pass would read the network's own. Here the call is one autograd function, whose backward pass puts the
given tensors back in place first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyrobnn.nets.calling import arguments, batch_for, main_output
from pyrobnn.nets.functional import call_with, in_place
from pyrobnn.nets.replica import copy_net

_TRIED = "_recomputed_tensor"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def recomputed_tensor(net: nn.Module, x: Any) -> str | None:
    """The name of a tensor of the network that its backward pass reads, or None.

    Tried once, on a copy, on the CPU, with two examples; the network and its copies remember it. A network that fails
    there is left to fail in its own call.
    """
    if not hasattr(net, _TRIED):
        setattr(net, _TRIED, _try(net, x))
    found: str | None = getattr(net, _TRIED)
    return found


def _try(net: nn.Module, x: Any) -> str | None:
    scratch = copy_net(net).cpu()
    # Indices are never given, and the backward pass of an indexing operation may read the network's own.
    tensors = [*scratch.named_parameters(), *scratch.named_buffers()]
    own = {id(t): name for name, t in tensors if t.is_floating_point()}
    floating = {n: t.detach().clone() for n, t in _tensors(scratch).items() if t.is_floating_point()}
    given = {name: value.requires_grad_(not name.endswith(_STATISTICS)) for name, value in floating.items()}
    seen = _Reads(own)
    try:
        with torch.random.fork_rng(devices=[]):
            output = main_output(call_with(scratch, given, arguments(_few(batch_for(net, x)))))
            if not output.requires_grad:
                return None
            with seen:
                output.sum().backward()
    except Exception:  # whatever the network's own Python raises
        return seen.name
    return seen.name


class _Reads(TorchDispatchMode):
    """Notes the first of the network's own tensors that an operation reads."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.name: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if id(value) in self.names and self.name is None:
                self.name = self.names[id(value)]
        return func(*args, **(kwargs or {}))


def _few(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x[:2].cpu() if x.dim() else x.cpu()
    return type(x)(_few(part) for part in x) if type(x) in (list, tuple) else x


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def call_outliving(net: nn.Module, values: Mapping[str, Tensor], x: Any) -> Tensor:
    """A call with other tensors, which are in place again while the backward pass runs.

    Gradients of the first order only. Statistics move in the forward pass alone.

    Args:
        net: the network.
        values: tensors by name; what they lack is the network's own.
        x: a batch; it stays as it is.

    Returns:
        The main output.
    """
    tensors = {**_tensors(net), **values}
    output: Tensor = _Outliving.apply(net, list(tensors), x, *tensors.values())
    return output


class _Outliving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: nn.Module, names: list[str], x: Any, *tensors: Tensor) -> Tensor:
        # Statistics are changed in place, so that they must be the tensors themselves.
        leaves = [t.detach().requires_grad_() if t.requires_grad else t for t in tensors]
        ctx.values, ctx.net, ctx.leaves = dict(zip(names, leaves, strict=True)), net, leaves
        with torch.enable_grad():
            ctx.output = main_output(call_with(net, ctx.values, arguments(batch_for(net, x))))
        return ctx.output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with in_place(ctx.net, {n: t.clone() if n.endswith(_STATISTICS) else t for n, t in ctx.values.items()}):
            torch.autograd.backward(ctx.output, grads[0])
        return (None, None, None, *(leaf.grad if leaf.requires_grad else None for leaf in ctx.leaves))
