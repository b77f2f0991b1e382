"""Cost of a cut network: parameters and multiply-accumulates as products of what is left of each axis, measured layer times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
        columns: dict[tuple[str, int], int] = {}  # of the cut axes
        fixed: list[int] = []
        factors: list[list[int]] = []  # per tensor, its cut axes; axis 0 of the list has the constant size 1
        for tensor in tensors:
            axes = cut_axes.get(tensor, {})
            fixed.append(_product(size for axis, size in enumerate(facts.shapes[tensor]) if axis not in axes))
            factors.append([])
            for axis, units in axes.items():
                flat.append(units)
                columns[tensor, axis] = len(flat)
                factors[-1].append(len(flat))
        timed = () if facts.times is None else facts.times.tensors
        for tensor in set(timed) - set(tensors):  # buffers, such as the statistics of a normalisation without weights
            for axis, units in cut_axes.get(tensor, {}).items():
                flat.append(units)
                columns[tensor, axis] = len(flat)
        # Per row of the layer times, the columns of the first two axes, and the size of what is not cut.
        both = [[(tensor, axis) for axis in (0, 1)] for tensor in timed]
        self._time_columns = torch.tensor([[columns.get(key, 0) for key in keys] for keys in both], dtype=torch.int64)
        self._time_fixed = torch.tensor(
            [[1.0 if key in columns else float(_size(facts.shapes[key[0]], key[1])) for key in keys] for keys in both],
            dtype=torch.float64,
        )
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

    def __call__(self, keep: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Parameters, multiply-accumulates (exact below 2^53) and milliseconds for a float64 vector over all units."""
        device = keep.device
        sizes = keep.new_zeros(self._axes + 1)
        sizes[0] = 1.0
        sizes = sizes.index_add(0, self._axis.to(device), keep[self._flat.to(device)])
        numel = self._fixed.to(device)
        for column in self._factors.to(device).unbind(1):
            numel = numel * sizes[column]
        macs = (numel * self._per_element.to(device)).sum() + self.facts.fixed_macs
        latency: Tensor | float = 0.0
        if self.facts.times is not None:
            latency = self.facts.times(self._time_fixed.to(device) * sizes[self._time_columns.to(device)])
        return (numel * self._is_parameter.to(device)).sum(), macs, latency

    def unit(self, group: ChannelGroup) -> Cost:
        """What the removal of one unit of a group saves; the mean if its units differ."""
        cutting = [member for member in group.members if member.cuts]
        if not cutting:
            return Cost(0.0, 0.0)
        # Units that take the same number of positions everywhere cost the same.
        counts = torch.stack([(member.index >= 0).sum(1) for member in cutting], dim=1)
        kinds, how_often = torch.unique(counts, dim=0, return_counts=True)
        params = macs = latency = 0.0
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
            latency += often * self._time_saved(taken)
        return Cost(params / group.channels, macs / group.channels, latency / group.channels)

    def _time_saved(self, taken: Mapping[str, Mapping[int, int]]) -> float:
        times = self.facts.times
        if times is None:
            return 0.0
        full = [[float(_size(self.facts.shapes[tensor], axis)) for axis in (0, 1)] for tensor in times.tensors]
        less = [[taken.get(tensor, {}).get(axis, 0) for axis in (0, 1)] for tensor in times.tensors]
        sizes = torch.tensor(full, dtype=torch.float64).reshape(-1, 2)
        return float(times(sizes) - times(sizes - torch.tensor(less).reshape(-1, 2)))


def _size(shape: Sequence[int], axis: int) -> int:
    return shape[axis] if axis < len(shape) else 1


def _product(sizes: Iterable[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
