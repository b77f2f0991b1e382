"""Calls a network with other tensors in place of its own.

As `torch.func.functional_call`, which leaves the given tensors in place of the network's own where one module has
two names in it (`self.first = self.second = block`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pyrobnn.errors import NetError


def call_with(net: nn.Module, tensors: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
    """The output of a network in which these tensors stand for its parameters and buffers of the same names.

    Args:
        net: any module; it is as before when this returns or raises.
        tensors: `{name of a parameter or buffer: tensor}`; a tensor that has several places is replaced in all of them.
        arguments: of the forward pass.

    Raises:
        NetError: a name that the network does not have.

    >>> import torch
    >>> call_with(nn.Linear(1, 1, bias=False), {"weight": torch.full((1, 1), 3.0)}, (torch.ones(1),)).item()
    3.0
    """
    with in_place(net, tensors):
        return net(*arguments)


@contextmanager
def in_place(net: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put tensors where the network looks for its own, and take them away again; arguments as of :func:`call_with`."""
    own = [
        (part, leaf, tensor, f"{path}.{leaf}" if path else leaf)
        for path, module in net.named_modules()
        for part in (module._parameters, module._buffers)
        for leaf, tensor in part.items()
        if tensor is not None
    ]
    # By the network's own tensor, since one may have several places.
    given = {id(tensor): tensors[name] for _, _, tensor, name in own if name in tensors}
    if len(given) < len(tensors):
        _by_further_names(net, tensors, given)
    try:
        for part, leaf, tensor, _ in own:
            if id(tensor) in given:
                part[leaf] = given[id(tensor)]
        yield
    finally:
        for part, leaf, tensor, _ in own:
            if id(tensor) in given:
                part[leaf] = tensor


def _by_further_names(net: nn.Module, tensors: Mapping[str, Tensor], given: dict[int, Tensor]) -> None:
    """Tensors with several places, and those of a module that has two names, have further ones."""
    own = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers(remove_duplicate=False))}
    for name, value in tensors.items():
        if name not in own:
            raise NetError(f"expected names of parameters and buffers of the network, got {name!r}")
        given.setdefault(id(own[name]), value)
