"""Packs many parameters into one tensor, so that one operation updates all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Pack:
    """Parameters as views of one flat tensor; each stays a parameter of its own, by name, shape and gradient.

    Whatever gives a parameter other memory (another device, a copy of the module) ends that; :meth:`flat` packs anew.

    Args:
        parameters: of one dtype and device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.sizes = [p.numel() for p in self.parameters]
        self._flat = torch.empty(0)

    def holds(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether these are the packed ones."""
        return len(parameters) == len(self.parameters) and all(
            a is b for a, b in zip(parameters, self.parameters, strict=True)
        )

    def flat(self) -> Tensor:
        """The parameters as one vector, whose gradient is theirs."""
        if not self._packed():
            self._pack()
        joined: Tensor = _Joined.apply(self._flat, self, *self.parameters)
        return joined

    def views(self, flat: Tensor) -> list[Tensor]:
        """A vector like :meth:`flat`, cut into tensors of the parameters' shapes."""
        return views_like(flat, self.parameters)

    def _packed(self) -> bool:
        place, step = self._flat.data_ptr(), self._flat.element_size()
        if self._flat.numel() != sum(self.sizes):
            return False
        for p, size in zip(self.parameters, self.sizes, strict=True):
            if p.data_ptr() != place or p.dtype != self._flat.dtype:
                return False
            place += size * step
        return True

    @torch.no_grad()
    def _pack(self) -> None:
        self._flat = torch.cat([in_memory_order(p.detach()) for p in self.parameters])
        for p, part in zip(self.parameters, self.views(self._flat), strict=True):
            p.data = part


def in_memory_order(value: Tensor) -> Tensor:
    """The entries as they lie in memory, for a tensor that is contiguous or channels-last; else in index order."""
    return (value.permute(0, 2, 3, 1) if _channels_last(value) else value).reshape(-1)


def views_like(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A vector cut into tensors of these shapes and memory layouts."""
    found = []
    for part, like in zip(vector.split([t.numel() for t in tensors]), tensors, strict=True):
        if _channels_last(like):
            rows, channels, high, wide = like.shape
            found.append(part.view(rows, high, wide, channels).permute(0, 3, 1, 2))
        else:
            found.append(part.view(like.shape))
    return found


def _channels_last(value: Tensor) -> bool:
    """By strides, so that what counts as both is told apart as it lies: their products need the same layout."""
    if value.dim() != 4:
        return False
    _, channels, high, wide = value.shape
    return value.stride() == (channels * high * wide, 1, channels * wide, channels)


@dataclass(frozen=True)
class Flat:
    """Independent Normals over all sites of a guide: their names, means and log standard deviations."""

    names: list[str]
    loc: Pack
    log_scale: Pack


class _Joined(torch.autograd.Function):
    """The vector behind packed parameters; its gradient is handed to them as views."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, pack: Pack, *parameters: Tensor) -> Tensor:
        ctx.pack = pack
        return flat.view_as(flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, *ctx.pack.views(grad.contiguous())


class DrawnNormal(dist.Normal):
    """A Normal whose first draw was made beforehand, with those of all other sites."""

    drawn: Tensor | None = None

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        drawn, self.drawn = self.drawn, None
        return super().rsample(sample_shape) if drawn is None or sample_shape else drawn
