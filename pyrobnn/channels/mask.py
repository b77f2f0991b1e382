"""Masked networks: tensors keep their shapes, with zeros where removed channels are read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.read import channel_groups
from pyrobnn.channels.surgery import Sites, check_net, mask_
from pyrobnn.channels.table import ChannelTable
from pyrobnn.errors import PlanError
from pyrobnn.nets.replica import copy_net


def mask(
    net: nn.Module,
    plan: PruningPlan,
    example: Tensor | tuple[Any, ...] | None,
    groups: ChannelTable | None = None,
) -> nn.Module:
    """A copy of `net` that ignores the removed channels.

    The consumers' input slices are zeroed, not the producers' rows: whatever bias, normalisation or activation
    stands between them, a removed channel has no effect.

    Args:
        net: the network the plan was made for.
        plan: what is kept.
        example: an input batch, to read the channel groups; not needed with `groups`.
        groups: the network's channel table.

    Raises:
        PlanError: the plan names groups or units that the network does not have, or keeps nothing.
    """
    table = table_for(net, plan, example, groups)
    keep = table.keep_vector(plan)
    masked = copy_net(net)
    sites = Sites(masked)
    check_net(table, sites)
    mask_(sites, table, keep)
    return masked


def table_for(
    net: nn.Module, plan: PruningPlan, example: Tensor | tuple[Any, ...] | None, groups: ChannelTable | None
) -> ChannelTable:
    """The given table, or one read from the net."""
    if groups is not None:
        return groups
    if example is None:
        raise PlanError("expected an example batch or groups=pb.channel_groups(net, example), got neither")
    return channel_groups(net, example)
