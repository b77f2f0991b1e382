"""The time of a forward pass as a function of what is left of each axis: a table of layer times, interpolated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SLOPE = 1e-3  # of a layer's time, that its narrowest and its widest form differ by at the least


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of a network's layers by their widths.

    Between the measured widths a time is bilinear; below the smallest and above the largest it goes on in the same line.

    Attributes:
        tensors: the weight of each row; the row's time depends on what is left of its first two axes.
        widths: float64 ``[rows, 2, K]``, measured sizes of those axes, rising.
        milliseconds: float64 ``[rows, K, K]``, at each pair of them, rising with both.
        fixed: milliseconds that no width changes.
        batch: examples of the pass.
    """

    tensors: tuple[str, ...]
    widths: Tensor
    milliseconds: Tensor
    fixed: float
    batch: int = 1

    def __call__(self, sizes: Tensor) -> Tensor:
        """Milliseconds for the sizes ``[..., rows, 2]`` of the first two axes; differentiable in them."""
        if not self.tensors:
            return sizes.new_full(sizes.shape[:-2], self.fixed)
        rows, _, count = self.widths.shape
        widths = self.widths.to(sizes)
        # The cell of each size: the number of inner grid points below it, so that slopes are those of a unit less.
        cell = (sizes.detach().unsqueeze(-1) > widths[..., 1:-1]).sum(-1)
        low, high = (
            widths.expand(*sizes.shape, count).gather(-1, (cell + k).unsqueeze(-1)).squeeze(-1) for k in (0, 1)
        )
        along = (sizes - low) / (high - low)
        at = torch.arange(rows, device=sizes.device)
        table = self.milliseconds.to(sizes)
        first, second = cell.unbind(-1)
        corner = [[table[at, first + i, second + j] for j in (0, 1)] for i in (0, 1)]
        u, v = along.unbind(-1)
        upper, lower = (corner[i][0] + v * (corner[i][1] - corner[i][0]) for i in (0, 1))
        return (upper + u * (lower - upper)).sum(-1) + self.fixed

    @classmethod
    def of(cls, rows: Mapping[str, list[tuple[Tensor, Tensor, Tensor]]], fixed: float, batch: int = 1) -> LayerTimes:
        """From measured grids, made to rise.

        Timing is noisy, and a wider layer that seems to take less time would be a reason to keep what nobody needs: each
        value becomes the largest of those at smaller or equal widths, with :data:`SLOPE` added from end to end.

        Args:
            rows: per weight, one or more `(sizes of axis 0 [m], sizes of axis 1 [n], milliseconds [m, n])`, sizes rising.
            fixed: milliseconds that no width changes.
            batch: examples of the pass.
        """
        names = [name for name, grids in rows.items() for _ in grids]
        grids = [grid for entries in rows.values() for grid in entries]
        count = max([2, *(len(sizes) for first, second, _ in grids for sizes in (first, second))])
        widths = torch.zeros(len(grids), 2, count, dtype=torch.float64)
        times = torch.zeros(len(grids), count, count, dtype=torch.float64)
        for row, (first, second, value) in enumerate(grids):
            raised = value.double().cummax(0).values.cummax(1).values
            slopes = (
                torch.linspace(0, SLOPE, n, dtype=torch.float64) if n > 1 else torch.zeros(1) for n in raised.shape
            )
            down, across = slopes
            raised = raised + float(raised.max()) * (down.unsqueeze(1) + across)
            for axis, sizes in enumerate((first, second)):
                beyond = torch.arange(
                    1, count - len(sizes) + 1
                )  # an axis with fewer points: the same time beyond its end
                widths[row, axis] = torch.cat([sizes.double(), sizes[-1] + beyond])
            last = [torch.arange(count).clamp_max(n - 1) for n in raised.shape]
            times[row] = raised[last[0]][:, last[1]]
        return cls(tuple(names), widths, times, float(fixed), batch)

    def data(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return {
            "tensors": list(self.tensors),
            "widths": self.widths.tolist(),
            "milliseconds": self.milliseconds.tolist(),
            "fixed": self.fixed,
            "batch": self.batch,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> LayerTimes:
        """What :meth:`data` gave."""
        rows = len(data["tensors"])
        widths = torch.tensor(data["widths"], dtype=torch.float64).reshape(rows, 2, -1 if rows else 2)
        times = torch.tensor(data["milliseconds"], dtype=torch.float64).reshape(rows, *(widths.shape[2],) * 2)
        return cls(tuple(data["tensors"]), widths, times, float(data["fixed"]), int(data["batch"]))
