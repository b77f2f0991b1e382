"""Calls a network with other tensors in place of its own.

As `torch.func.functional_call`, which leaves the given tensors in place of the network's own where one module has
two names in it (`self.first = self.second = block`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from pyrobnn.errors import NetError

_HELD = "_parameters_in_order"


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
    modules = list(net.named_modules())
    own = [
        (part, leaf, tensor, f"{path}.{leaf}" if path else leaf)
        for path, module in modules
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
        with ExitStack() as stack:
            for _, module in modules:
                if _HELD in vars(module):
                    stack.enter_context(_as_parameters(module, vars(module)[_HELD]))
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


def hold(module: nn.Module, leaf: str, value: Tensor) -> None:
    """Make a parameter of a module a buffer, which its forward pass still sees as a parameter in :func:`in_place`."""
    vars(module).setdefault(_HELD, list(module._parameters))
    del module._parameters[leaf]
    module._buffers[leaf] = value


def release(module: nn.Module, leaf: str, parameter: nn.Parameter) -> None:
    """Make a buffer a parameter again, in the order that the module was written in."""
    del module._buffers[leaf]
    module._parameters[leaf] = parameter
    order = vars(module).get(_HELD, ())
    for name in [name for name in order if name in module._parameters]:
        module._parameters[name] = module._parameters.pop(name)
    if all(name in module._parameters for name in order):
        vars(module).pop(_HELD, None)


@contextmanager
def _as_parameters(module: nn.Module, order: list[str]) -> Iterator[None]:
    """Held tensors among the parameters: a forward pass may go through `self.parameters()`."""
    parameters, buffers = module._parameters, module._buffers
    seen: dict[str, Any] = {leaf: (parameters if leaf in parameters else buffers)[leaf] for leaf in order}
    rest = {leaf: tensor for leaf, tensor in buffers.items() if leaf not in seen}
    vars(module).update(_parameters={**seen, **parameters}, _buffers=rest)
    try:
        yield
    finally:
        buffers.update(module._buffers)  # a forward pass may put another tensor there
        vars(module).update(_parameters=parameters, _buffers=buffers)
