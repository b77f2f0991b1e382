"""Gates: per-channel factors on the tensors that read a channel, so that no later layer can cancel them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyrobnn.channels.surgery import Sites
from pyrobnn.channels.table import ChannelTable, along
from pyrobnn.errors import NetError


class GateMap:
    """Multiplies parameters by per-channel gates.

    The input slices of all consuming layers are multiplied, ``W[:, c] * gate[c]``: noise on the activation that they
    read, exact for every network. (Rows in front of a normalisation are no place for a gate: batch statistics divide
    it out.)

    Args:
        table: the channel table of the network.

    Attributes:
        names: the tensors that :meth:`apply` may multiply.
    """

    def __init__(self, table: ChannelTable) -> None:
        self.table = table
        self._flat = {tensor: dict(axes) for tensor, axes in table.read_axes.items()}
        owner = [""] + [group.name for group in table for _ in range(group.channels)]
        self._groups_of = {
            name: {owner[unit] for units in axes.values() for unit in set(units.tolist()) if unit}
            for name, axes in self._flat.items()
        }
        self._on_device: dict[torch.device, dict[str, dict[int, Tensor]]] = {}

    @property
    def names(self) -> list[str]:
        """The tensors that carry a gate."""
        return list(self._flat)

    def apply(self, tensors: Mapping[str, Tensor], gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply gates into tensors; differentiable in both.

        Args:
            tensors: parameters and buffers by name; those that carry gates must be among them.
            gates: per group a tensor ``[channels]``; groups not named are left alone.

        Returns:
            All of `tensors`, those with gates replaced.

        Raises:
            NetError: a tensor that should carry a gate is missing.
            PlanError: a group is unknown or its gate has the wrong shape.
        """
        result = dict(tensors)
        if not gates:
            return result
        vector = self.table.flat(gates)
        for name, axes in self._indices(vector.device).items():
            if self._groups_of[name].isdisjoint(gates):
                continue
            if name not in result:
                raise NetError(f"expected the tensor {name!r}, which carries gates, among the tensors")
            value = result[name]
            for axis, units in axes.items():
                factor = vector.index_select(0, units).view(along(axis, value.dim()))
                value = value * factor.to(value.dtype)
            result[name] = value
        return result

    @torch.no_grad()
    def fold(self, net: nn.Module, gates: Mapping[str, Tensor]) -> None:
        """Multiply gates into a network's own tensors, in place.

        Raises:
            NetError: the network does not have the table's tensors.
        """
        sites = Sites(net)
        own = {name: sites.get(name) for name in self.names}
        for name, value in self.apply(own, gates).items():
            if value is not own[name]:
                own[name].copy_(value)

    def _indices(self, device: torch.device) -> dict[str, dict[int, Tensor]]:
        if device not in self._on_device:
            self._on_device[device] = {
                name: {axis: units.to(device) for axis, units in axes.items()} for name, axes in self._flat.items()
            }
        return self._on_device[device]
