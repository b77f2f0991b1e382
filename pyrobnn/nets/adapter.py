"""Adapts networks with another calling convention to one tensor per batch: `net(x)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

_OWN = "_pyrobnn_own_class"


def adapted(
    net: nn.Module, unpack: Callable[[Tensor], Any] | None, call: Callable[[Any, Any], Any] | None = None
) -> nn.Module:
    """Gives a network, in place, a `forward` that takes one tensor. Names of modules and parameters stay.

    Args:
        net: any network.
        unpack: from that tensor to the batch that the network knows; None if they are the same.
        call: `call(net, batch)` calls it and returns its output; without it a tuple is unpacked into arguments, a dict
            into keywords.
    """
    own = type(net)
    forward = own.forward

    def single(self: nn.Module, x: Tensor) -> Any:
        batch = x if unpack is None else unpack(x)
        plain = _Plain(self, forward.__get__(self))
        if call is not None:
            return call(plain, batch)
        if isinstance(batch, Mapping):
            return plain(**batch)
        return plain(*batch) if isinstance(batch, tuple) else plain(batch)

    # A subclass, so that copies and `functional_call` know nothing of it.
    net.__class__ = type(own.__name__, (own,), {"forward": single, _OWN: own, "__module__": own.__module__})
    return net


def released(net: nn.Module) -> nn.Module:
    """The network with its own `forward` again, in place."""
    own = getattr(type(net), _OWN, None)
    if own is not None:
        net.__class__ = own
    return net


class _Plain:
    """A network with its own way to be called."""

    def __init__(self, net: nn.Module, forward: Callable[..., Any]) -> None:
        self._net, self._forward = net, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)
