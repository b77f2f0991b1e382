"""Compact networks: the removed channels are gone from the tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyrobnn.channels.mask import table_for
from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.resize import resize_to
from pyrobnn.channels.surgery import Sites, check_net, cut_, refresh_attributes
from pyrobnn.channels.table import ChannelTable
from pyrobnn.nets.replica import copy_net


def compact(
    net: nn.Module,
    plan: PruningPlan,
    example: Tensor | tuple[Any, ...] | None,
    groups: ChannelTable | None = None,
    *,
    copy: bool = True,
) -> nn.Module:
    """A copy of `net` without the removed channels: the same function as :func:`~pyrobnn.channels.mask.mask`.

    Integer attributes (``in_channels``, ``groups``, ``num_features`` …) are recomputed from the tensors, and
    gradients of cut parameters are dropped.

    Args:
        net: the network the plan was made for.
        plan: what is kept.
        example: an input batch, to read the channel groups; not needed with `groups`.
        groups: the network's channel table.
        copy: False cuts `net` itself, for one that is not needed any more.

    Raises:
        PlanError: the plan names groups or units that the network does not have, or keeps nothing.
    """
    table = table_for(net, plan, example, groups)
    keep = table.keep_vector(plan)
    small = copy_net(net) if copy else net
    sites = Sites(small)
    check_net(table, sites)
    cut_(sites, table, keep)
    return small


__all__ = ["compact", "refresh_attributes", "resize_to"]
