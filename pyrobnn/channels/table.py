"""The channel table: which positions of which tensors belong to one removable unit, and what a unit costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import torch
from torch import Tensor

from pyrobnn.channels.parts import ChannelGroup, Cost, MapInput, NetFacts, gather_padded
from pyrobnn.channels.pricing import Pricing
from pyrobnn.channels.times import LayerTimes
from pyrobnn.errors import PlanError

if TYPE_CHECKING:
    from pyrobnn.channels.plan import PruningPlan


class ChannelTable(list[ChannelGroup]):
    """All channel groups of one network: the one table behind masks, cuts, gates, costs and scores.

    A list of :class:`ChannelGroup`; ``table["layer1.0.conv1"]`` looks one up by name.

    Args:
        groups: the groups that can be cut.
        facts: shapes, uses and maps of the network.
        refused: name and reason of everything that cannot be cut.
    """

    def __init__(
        self, groups: Iterable[ChannelGroup], facts: NetFacts, refused: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(groups)
        self.facts = facts
        self.refused: dict[str, str] = dict(refused or {})
        self._by_name = {group.name: group for group in self}
        # Flat coordinates: 0 stands for "always there", then all units of all groups in table order.
        self.offsets: dict[str, int] = {}
        total = 1
        for group in self:
            self.offsets[group.name] = total
            total += group.channels
        self.units = total - 1
        self.cut_axes = self._flatten("cuts")
        self.read_axes = self._flatten("reads")
        self._pricing = Pricing(self.facts, self.cut_axes)
        self[:] = [replace(group, cost=self._pricing.unit(group)) for group in self]
        self._by_name = {group.name: group for group in self}

    # Looking things up

    @overload
    def __getitem__(self, key: SupportsIndex) -> ChannelGroup: ...
    @overload
    def __getitem__(self, key: slice) -> list[ChannelGroup]: ...
    @overload
    def __getitem__(self, key: str) -> ChannelGroup: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            try:
                return self._by_name[key]
            except KeyError:
                raise PlanError(self._unknown(key)) from None
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        return key in self._by_name if isinstance(key, str) else super().__contains__(key)

    @property
    def names(self) -> list[str]:
        """Group names in forward order."""
        return [group.name for group in self]

    def widths(self) -> dict[str, int]:
        """Units per group."""
        return {group.name: group.channels for group in self}

    def axes(self, tensor: str) -> list[tuple[int, str, Tensor]]:
        """Everything that cuts this tensor: ``(axis, group name, index [channels, k])``."""
        return [
            (member.axis, group.name, member.index)
            for group in self
            for member in group.members
            if member.tensor == tensor and member.cuts
        ]

    def _unknown(self, name: str) -> str:
        if name in self.refused:
            return f"group {name!r} cannot be cut: {self.refused[name]}"
        import difflib

        near = difflib.get_close_matches(name, self.names, n=3)
        hint = f"near names: {', '.join(near)}" if near else f"this net has {', '.join(self.names[:8]) or 'no groups'}"
        return f"expected a channel group of this net, got {name!r}; {hint}"

    # Flat coordinates

    def _flatten(self, which: str) -> dict[str, dict[int, Tensor]]:
        flat: dict[str, dict[int, Tensor]] = {}
        for group in self:
            rows = torch.arange(group.channels) + self.offsets[group.name]
            for member in group.members:
                if not getattr(member, which):
                    continue
                size = self.facts.shapes[member.tensor][member.axis]
                axis = flat.setdefault(member.tensor, {}).setdefault(member.axis, torch.zeros(size, dtype=torch.int64))
                there = member.index >= 0
                axis[member.index[there]] = rows.unsqueeze(1).expand_as(member.index)[there]
        return flat

    def flat(self, values: Mapping[str, Tensor], fill: float | bool = 1.0) -> Tensor:
        """One vector over all units, position 0 being "always there"; groups not given are `fill`.

        Args:
            values: per group a tensor ``[channels]``.
            fill: value for the rest.

        Raises:
            PlanError: a group is unknown or a tensor has the wrong shape.
        """
        for name, value in values.items():
            if name not in self:
                raise PlanError(self._unknown(name))
            if value.shape != (self[name].channels,):
                raise PlanError(
                    f"expected {self[name].channels} values for group {name!r}, got shape {tuple(value.shape)}"
                )
        like = next(iter(values.values())) if values else torch.ones(1, dtype=torch.float64)
        parts = [like.new_full((1,), fill)]
        parts += [
            values[group.name].to(like) if group.name in values else like.new_full((group.channels,), fill)
            for group in self
        ]
        return torch.cat(parts)

    def keep_vector(self, plan: PruningPlan) -> Tensor:
        """Boolean ``[1 + units]``: which units the plan keeps, in flat coordinates.

        Raises:
            PlanError: the plan names groups or units that this table does not have, or keeps nothing.
        """
        keep: dict[str, Tensor] = {}
        for name, indices in plan.keep.items():
            group = self[name]
            known = plan.channels.get(name, group.channels)
            if known != group.channels:
                raise PlanError(
                    f"the plan was made for {known} units of {name!r}, this net has {group.channels}: "
                    "apply it to the net it was made for"
                )
            if not indices:
                raise PlanError(f"the plan keeps nothing of {name!r}: keep at least one unit")
            if min(indices) < 0 or max(indices) >= group.channels:
                raise PlanError(
                    f"expected units 0..{group.channels - 1} for {name!r}, got {min(indices)}..{max(indices)}"
                )
            vector = torch.zeros(group.channels, dtype=torch.bool)
            vector[torch.tensor(list(indices))] = True
            keep[name] = vector
        flat = self.flat(keep, fill=True).bool()
        for tensor, axes in self.cut_axes.items():
            for axis, units in axes.items():
                if not bool(flat[units].any()):
                    raise PlanError(f"the plan leaves nothing of axis {axis} of {tensor!r}: keep more units")
        return flat

    # Cutting

    def slice(self, tensor_name: str, tensor: Tensor, plan: PruningPlan) -> Tensor:
        """Cut any tensor shaped like the net's `tensor_name` (a guide's scale, a moment of an optimiser).

        Args:
            tensor_name: name of a parameter or buffer.
            tensor: of the same shape.
            plan: in the coordinates of this table.

        Returns:
            A new tensor, or `tensor` itself where nothing is cut.

        Raises:
            PlanError: the plan or the shape does not fit.
        """
        return self.cut(tensor_name, tensor, self.keep_vector(plan))

    def cut(self, tensor_name: str, tensor: Tensor, keep: Tensor) -> Tensor:
        """:meth:`slice` with a :meth:`keep_vector`."""
        shape = self.facts.shapes.get(tensor_name)
        if shape is None:
            raise PlanError(f"expected a parameter or buffer of the net, got {tensor_name!r}")
        axes = self.cut_axes.get(tensor_name, {})
        is_map = tensor_name in self.facts.maps or tensor_name in self.read_axes
        if not axes and not is_map:
            return tensor
        if tuple(tensor.shape) != shape:
            raise PlanError(f"expected shape {shape} like {tensor_name!r}, got {tuple(tensor.shape)}")
        if tensor_name in self.facts.maps:
            tensor = self._renumber(tensor_name, tensor, keep)
        for axis, units in self.read_axes.get(tensor_name, {}).items():
            if axis not in axes or not torch.equal(axes[axis], units):  # the weight of a ChannelMap
                tensor = tensor * keep[units].view(along(axis, tensor.dim())).to(tensor)
        for axis, units in axes.items():
            stays = keep[units]
            if not bool(stays.all()):
                tensor = tensor.index_select(axis, stays.nonzero().squeeze(1).to(tensor.device))
        return tensor

    def _renumber(self, tensor_name: str, index: Tensor, keep: Tensor) -> Tensor:
        stays = self._map_stays(self.facts.maps[tensor_name], keep)
        rank = (stays.cumsum(0) - 1) * stays  # removed inputs read channel 0 with weight 0
        return rank.to(index.device)[index]

    def _map_stays(self, source: MapInput, keep: Tensor) -> Tensor:
        stays = torch.ones(source.size, dtype=torch.bool)
        for name, units in source.units:
            there = units >= 0
            stays[there] &= keep[self.offsets[name] + units[there]]
        return stays

    def after(self, plan: PruningPlan) -> ChannelTable:
        """The table of the compact network, without tracing again; names stay, costs are recomputed."""
        keep = self.keep_vector(plan)
        positions: dict[tuple[str, int], Tensor] = {}
        shapes = dict(self.facts.shapes)
        for tensor, axes in self.cut_axes.items():
            shape = list(shapes[tensor])
            for axis, units in axes.items():
                stays = keep[units]
                positions[tensor, axis] = torch.where(stays, stays.cumsum(0) - 1, -1)
                shape[axis] = int(stays.sum())
            shapes[tensor] = tuple(shape)
        groups = []
        unit_rank = {}
        for group in self:
            start = self.offsets[group.name]
            stays = keep[start : start + group.channels]
            unit_rank[group.name] = torch.where(stays, stays.cumsum(0) - 1, -1)
            members = []
            for member in group.members:
                index = member.index[stays]
                moved = positions.get((member.tensor, member.axis))
                if moved is not None:
                    index = gather_padded(moved, index, -1)
                members.append(replace(member, index=compact_rows(index)))
            groups.append(ChannelGroup(group.name, int(stays.sum()), tuple(m for m in members if m.index.numel())))
        maps = {}
        for name, source in self.facts.maps.items():
            inputs = self._map_stays(source, keep)
            moved_units = tuple(
                (group, gather_padded(unit_rank[group], units, -1)[inputs]) for group, units in source.units
            )
            maps[name] = MapInput(int(inputs.sum()), moved_units)
        facts = replace(self.facts, shapes=shapes, maps=maps)
        return ChannelTable(groups, facts, self.refused)

    def timed(self, times: LayerTimes | None) -> ChannelTable:
        """The same table with the times of its layers (:func:`~pyrobnn.time_layers` measures them), or without any."""
        return ChannelTable(self, replace(self.facts, times=times), self.refused)

    def without(self, reasons: Mapping[str, str]) -> ChannelTable:
        """The same table with some groups refused, name by name with the reason."""
        groups = [group for group in self if group.name not in reasons]
        maps = {
            name: replace(source, units=tuple(pair for pair in source.units if pair[0] not in reasons))
            for name, source in self.facts.maps.items()
        }
        return ChannelTable(groups, replace(self.facts, maps=maps), {**self.refused, **reasons})

    # Cost

    def cost(self, keep: Mapping[str, Tensor] | None = None) -> Cost:
        """Parameters and multiply-accumulates left when the units in `keep` stay.

        Every tensor is as large as the product of what is left of its axes, so the figures are exact for 0/1
        keeps without building anything, and differentiable in soft ones (the expected size under independent
        keeps, but for axes that share a group).

        Args:
            keep: per group a boolean or float tensor ``[channels]``; groups not named stay whole. None: all.

        Returns:
            Ints for boolean keeps and None, float64 tensors for float ones; `latency` in milliseconds where layers were timed.

        Raises:
            PlanError: a group is unknown or a tensor has the wrong shape.
        """
        values = dict(keep or {})
        params, macs, latency = self._pricing(
            self.flat({name: value.to(torch.float64) for name, value in values.items()})
        )
        if any(value.is_floating_point() for value in values.values()):
            return Cost(params, macs, latency)
        return Cost(round(float(params)), round(float(macs)), float(latency))


def compact_rows(index: Tensor) -> Tensor:
    """Move the -1 of every row to its end and drop columns that are -1 throughout."""
    if index.numel() == 0:
        return index.reshape(index.shape[0], 0)
    big = torch.iinfo(torch.int64).max
    rows = torch.where(index < 0, big, index).sort(1).values
    rows = torch.where(rows == big, -1, rows)
    return rows[:, : int((rows >= 0).sum(1).max())]


def along(axis: int, dims: int) -> tuple[int, ...]:
    """The view that lays a vector along one of `dims` axes."""
    return tuple(-1 if d == axis else 1 for d in range(dims))
