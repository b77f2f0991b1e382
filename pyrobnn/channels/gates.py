"""Gates: per-channel factors placed where nothing downstream can undo them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from pyrobnn.channels.surgery import Sites
from pyrobnn.channels.table import ChannelTable, along
from pyrobnn.errors import ConfigError, NetError


class GateMap:
    """Multiplies parameters by per-channel gates.

    With ``placement="in"`` the input slices of all consuming layers are multiplied, ``W[:, c] * gate[c]``: noise on
    the activation that they read, exact for every network. With ``"auto"`` a group whose consumers all read it
    behind one and the same normalisation, with nothing but operations with f(0) = 0 in between, has its gate on
    gamma and beta of that layer instead, which costs nothing; all other groups stay with the consumers.
    Rows in front of a normalisation are no place for a gate: batch statistics divide it out.

    Args:
        table: the channel table of the network.
        placement: ``"in"`` or ``"auto"``.

    Attributes:
        names: the tensors that :meth:`apply` may multiply.
        placed: per group ``"in"`` or the name of the normalisation weight that carries the gate.

    Raises:
        ConfigError: the placement is unknown.
    """

    def __init__(self, table: ChannelTable, placement: Literal["in", "auto"] | str = "in") -> None:
        if placement not in ("in", "auto"):
            raise ConfigError(f"expected a gate placement 'in' or 'auto', got {placement!r}")
        self.table = table
        self.placed = {group.name: "in" for group in table}
        flat: dict[str, dict[int, Tensor]] = {}
        at_norm = torch.zeros(table.units + 1, dtype=torch.bool)
        if placement == "auto":
            for name, (gamma, beta) in table.facts.norms.items():
                self.placed[name] = gamma
                start = table.offsets[name]
                at_norm[start : start + table[name].channels] = True
                for tensor in (gamma, beta):
                    flat.setdefault(tensor, {})[0] = table.cut_axes[tensor][0]
        for tensor, axes in table.read_axes.items():
            for axis, units in axes.items():
                left = units.masked_fill(at_norm[units], 0)
                if bool(left.any()):
                    flat.setdefault(tensor, {})[axis] = left
        self._flat = flat
        owner = [""] + [group.name for group in table for _ in range(group.channels)]
        self._groups_of = {
            name: {owner[unit] for units in axes.values() for unit in set(units.tolist()) if unit}
            for name, axes in flat.items()
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
