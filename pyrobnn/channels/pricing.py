"""Prices: parameters and multiply-accumulates as products of what is left of each axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pyrobnn.channels.parts import ChannelGroup, Cost, NetFacts


class Pricing:
    """Sizes of all tensors of a network as a function of a keep vector.

    Args:
        facts: shapes, parameters and uses of the network.
        cut_axes: per tensor and axis, the flat unit of every position (0: always there).
    """

    def __init__(self, facts: NetFacts, cut_axes: Mapping[str, Mapping[int, Tensor]]) -> None:
        self.facts = facts
        self.positions: dict[str, int] = {}
        for tensor, count in facts.uses:
            self.positions[tensor] = self.positions.get(tensor, 0) + count
        tensors = sorted(facts.parameters | self.positions.keys())
        flat: list[Tensor] = []
        fixed: list[int] = []
        factors: list[list[int]] = []  # per tensor, its cut axes; axis 0 of the list has the constant size 1
        for tensor in tensors:
            axes = cut_axes.get(tensor, {})
            fixed.append(_product(size for axis, size in enumerate(facts.shapes[tensor]) if axis not in axes))
            factors.append([])
            for units in axes.values():
                flat.append(units)
                factors[-1].append(len(flat))
        width = max((len(row) for row in factors), default=0)
        rows = [row + [0] * (width - len(row)) for row in factors]
        self._factors = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)
        self._flat = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.int64)
        lengths = torch.tensor([units.numel() for units in flat], dtype=torch.int64)
        self._axis = torch.repeat_interleave(torch.arange(1, len(flat) + 1), lengths)
        self._axes = len(flat)
        self._fixed = torch.tensor(fixed, dtype=torch.float64)
        self._is_parameter = torch.tensor([float(t in facts.parameters) for t in tensors], dtype=torch.float64)
        self._per_element = torch.tensor([self.positions.get(t, 0) for t in tensors], dtype=torch.float64)

    def __call__(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters and multiply-accumulates for a float64 vector over all units (exact below 2^53)."""
        device = keep.device
        sizes = keep.new_zeros(self._axes + 1)
        sizes[0] = 1.0
        sizes = sizes.index_add(0, self._axis.to(device), keep[self._flat.to(device)])
        numel = self._fixed.to(device)
        for column in self._factors.to(device).unbind(1):
            numel = numel * sizes[column]
        macs = (numel * self._per_element.to(device)).sum() + self.facts.fixed_macs
        return (numel * self._is_parameter.to(device)).sum(), macs

    def unit(self, group: ChannelGroup) -> Cost:
        """What the removal of one unit of a group saves; the mean if its units differ."""
        cutting = [member for member in group.members if member.cuts]
        if not cutting:
            return Cost(0.0, 0.0)
        # Units that take the same number of positions everywhere cost the same.
        counts = torch.stack([(member.index >= 0).sum(1) for member in cutting], dim=1)
        kinds, how_often = torch.unique(counts, dim=0, return_counts=True)
        params = macs = 0.0
        for kind, often in zip(kinds.tolist(), how_often.tolist(), strict=True):
            taken: dict[str, dict[int, int]] = {}
            for member, count in zip(cutting, kind, strict=True):
                taken.setdefault(member.tensor, {})[member.axis] = count
            for tensor, axes in taken.items():
                shape = self.facts.shapes[tensor]
                left = _product(size - axes.get(axis, 0) for axis, size in enumerate(shape))
                saved = often * (_product(shape) - left)
                params += saved if tensor in self.facts.parameters else 0
                macs += saved * self.positions.get(tensor, 0)
        return Cost(params / group.channels, macs / group.channels)


def _product(sizes: Iterable[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
