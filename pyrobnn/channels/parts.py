"""The records of a channel table: members, groups, costs, and facts about the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from pyrobnn.channels.times import LayerTimes

COSTS = ("macs", "params", "latency")  # what a budget may be set for: fields of Cost
Role = Literal["out", "through", "in", "map", "size"]


@dataclass(frozen=True)
class Cost:
    """The price of a network or of one unit.

    Attributes:
        params: elements of parameter tensors.
        macs: multiply-accumulates of convolutions and linear layers for one example, without biases.
        latency: milliseconds of a forward pass by the table's layer times; 0 without such (:func:`~pyrobnn.time_layers`).

    The first two are exact ints for whole networks, floats for mean prices, and float64 tensors for soft keeps.
    """

    params: Any
    macs: Any
    latency: Any = 0.0

    def __repr__(self) -> str:
        timed = "" if isinstance(self.latency, float) and self.latency == 0 else f", latency={self.latency}"
        return f"Cost(params={self.params}, macs={self.macs}{timed})"


@dataclass(frozen=True)
class Member:
    """Where a group meets one axis of one tensor.

    Attributes:
        tensor: name as in ``named_parameters`` or ``named_buffers``.
        axis: the axis that is cut.
        index: int64 ``[channels, k]``, the positions of each unit on that axis; -1 pads ragged rows.
        role: ``"out"`` rows of a producer and its bias; ``"through"`` per-channel tensors on the way
            (normalisation, depthwise and grouped filters, PReLU, layer scale); ``"in"`` the slices of a
            consumer; ``"map"`` the slots of a ``ChannelMap`` that read the channel (zeroed, never cut); ``"size"`` a
            number in an attribute of a module that counts the channels (`tensor` is its name in ``facts.sizes``).
    """

    tensor: str
    axis: int
    index: Tensor
    role: Role

    @property
    def cuts(self) -> bool:
        """Whether removing a unit removes these positions."""
        return self.role != "map"

    @property
    def reads(self) -> bool:
        """Whether these positions consume the channel: the place of masks and gates."""
        return self.role in ("in", "map")


@dataclass(frozen=True)
class ChannelGroup:
    """Units that one name stands for; each unit can be removed alone.

    Attributes:
        name: module path of the first producer in forward order.
        channels: number of units.
        members: every tensor axis the group touches. A tensor that is used twice appears once.
        cost: what the removal of one unit saves at the table's current widths (mean over the units).
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    cost: Cost = Cost(0, 0)

    def __repr__(self) -> str:
        return f"ChannelGroup({self.name!r}, channels={self.channels}, members={len(self.members)}, cost={self.cost})"


@dataclass(frozen=True)
class MapInput:
    """The input side of one ``ChannelMap``.

    Attributes:
        size: number of input channels.
        units: per group, int64 ``[size]``: the unit an input channel belongs to, or -1.
    """

    size: int
    units: tuple[tuple[str, Tensor], ...]


@dataclass(frozen=True)
class NetFacts:
    """What the table knows of the network besides its groups.

    Attributes:
        shapes: shape of every parameter and buffer.
        parameters: names of the parameters, each tensor once.
        uses: one ``(tensor, positions)`` per convolution or linear call, with the number of output
            positions for one example: multiply-accumulates are elements times positions.
        maps: input side of every ``ChannelMap``, by the name of its ``index`` buffer.
        fixed_macs: multiply-accumulates for one example of layers that cannot be cut since their weight is computed.
        sizes: attributes that count channels: the module's path, the attribute, the position in it or None.
        times: what the layers take by their widths, where that was measured.
    """

    shapes: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str]
    uses: tuple[tuple[str, int], ...]
    maps: Mapping[str, MapInput]
    fixed_macs: int = 0
    sizes: Mapping[str, tuple[str, str, int | None]] = field(default_factory=dict)
    times: LayerTimes | None = None


def per_unit(tensor: Tensor, axis: int, index: Tensor) -> Tensor:
    """Sum a tensor over everything but the units of one member: `[channels]`.

    `index` is the member's `[channels, k]` with -1 for padding.
    """
    rows = (
        tensor.detach().float().cpu().movedim(axis, 0).flatten(1).sum(1)
        if tensor.dim() > 1
        else tensor.detach().float().cpu()
    )
    return gather_padded(rows, index).sum(1)


def gather_padded(values: Tensor, index: Tensor, empty: float = 0) -> Tensor:
    """Rows of `values` `[n, ...]` at an index `[channels, k]`, `empty` where that is negative: `[channels, k, ...]`.

    >>> import torch
    >>> gather_padded(torch.tensor([5.0, 6.0]), torch.tensor([[1, 0], [0, -1]]))
    tensor([[6., 5.],
            [5., 0.]])
    """
    index = index.to(values.device)
    absent = (index < 0).reshape(*index.shape, *[1] * (values.dim() - 1))
    return values[index.clamp_min(0)].masked_fill(absent, empty)
