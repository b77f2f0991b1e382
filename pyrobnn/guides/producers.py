"""From values per filter to values per channel, over all tensors that produce a channel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrobnn.channels.parts import gather_padded

#: Tensors that write a group's channels, with ``index [channels, k]`` on axis 0; negative where there is none.
Producers = list[tuple[str, Tensor]]


def producers_of(table: Any, names: Collection[str]) -> dict[str, Producers]:
    """Per group the tensors whose filters write it, with `index [channels, k]` on axis 0."""
    found: dict[str, Producers] = {}
    for group in table or []:
        rows = [m for m in group.members if m.role == "out" and m.axis == 0]
        members = [(m.tensor, m.index) for m in rows if m.tensor in names]
        if members:
            found[group.name] = members
    return found


def any_live(producers: Producers, live: Mapping[str, Tensor]) -> Tensor:
    """P(one of a channel's filters is live), ``[channels]``, from that of each filter; filters are independent."""
    dead = torch.ones(())
    for name, index in producers:
        rows = gather_padded(1 - live[name], index, 1.0)
        dead = dead.to(rows) * rows.prod(-1)
    return 1 - dead


def shares_of(producers: Producers, values: Mapping[str, Tensor]) -> Tensor:
    """Each channel's share of the sum of all its filters' values, ``[channels]``."""
    total = torch.zeros(())
    for name, index in producers:
        rows = gather_padded(values[name], index, 0.0)
        total = total.to(rows) + rows.sum(-1)
    return total / total.sum().clamp_min(1e-12)
