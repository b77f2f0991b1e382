"""Parameters of a network that are random: held as buffers, and made parameters again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from pyrobnn.channels.surgery import Sites


class HeldParameters:
    """Turns parameters into buffers with their values, in place, and remembers how to take that back.

    Args:
        net: the network.
        names: of its parameters.

    Attributes:
        names: as given.
        frozen: the network's parameters that were not to be trained.
    """

    def __init__(self, net: nn.Module, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.frozen = frozenset(name for name, p in net.named_parameters() if not p.requires_grad)
        sites = Sites(net)
        self._aliases = [aliases for name in self.names if len(aliases := sites.names(name)) > 1]
        for name in self.names:
            sites.hold(name)

    def tie(self, net: nn.Module) -> nn.Module:
        """Make a held tensor that several layers share one tensor again, whatever `to` made of its places."""
        for first, *others in self._aliases:
            value = net.get_buffer(first)
            for name in others:
                path, _, leaf = name.rpartition(".")
                net.get_submodule(path)._buffers[leaf] = value
        return net

    def released(self, net: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
        """Turn what is held in a network of this kind (a copy, also a cut one) into parameters again, in place.

        They get `values` where these have one; flags and order are those of the network as it was given.
        """
        sites = Sites(net)
        for name in self.names:
            value = values[name] if name in values else sites.get(name)
            sites.release(name, value.detach().clone(), requires_grad=name not in self.frozen)
        return net
