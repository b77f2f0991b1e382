"""Compact networks: really smaller tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels.mask import table_for
from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.surgery import Sites, check_net, cut_, refresh_attributes
from pyrobnn.channels.table import ChannelTable
from pyrobnn.errors import NetError
from pyrobnn.nets.replica import copy_net


def compact(
    net: nn.Module,
    plan: PruningPlan,
    example: Tensor | tuple[Any, ...] | None,
    groups: ChannelTable | None = None,
) -> nn.Module:
    """A copy of `net` without the removed channels: the same function as :func:`~pyrobnn.channels.mask.mask`.

    Integer attributes (``in_channels``, ``groups``, ``num_features`` …) are recomputed from the tensors, and
    gradients of cut parameters are dropped.

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
    small = copy_net(net)
    sites = Sites(small)
    check_net(table, sites)
    cut_(sites, table, keep)
    return small


@torch.no_grad()
def resize_to(net: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Turn a dense network into a compact one of the saved shapes, and load the saved tensors.

    Args:
        net: the network as its factory builds it; it is copied. On the `meta` device only its shapes matter: the
            result is on the CPU, and takes the memory of the saved tensors.
        state_dict: tensors of a compact network of the same kind.

    Returns:
        The compact network.

    Raises:
        NetError: a tensor is missing, unexpected, or of another number of axes.
    """
    small = copy_net(net)
    sites = Sites(small)
    # Buffers that a cut made smaller are saved although the factory's network does not save them.
    sites.persist(name for name in state_dict if name in sites.ids)
    expected = small.state_dict()
    for name in expected.keys() ^ state_dict.keys():
        kind = "missing" if name in expected else "unexpected"
        raise NetError(
            f"the saved tensors do not fit this network: {name!r} is {kind}; use the factory they were made with"
        )
    changed = []
    for name, value in state_dict.items():
        if not isinstance(value, Tensor) or name not in sites.ids:
            continue
        old = sites.get(name)
        if old.dim() != value.dim() or any(new > size for new, size in zip(value.shape, old.shape, strict=True)):
            raise NetError(
                f"expected {name!r} no larger than {tuple(old.shape)}, got {tuple(value.shape)}: "
                "the saved tensors belong to another network"
            )
        if old.shape != value.shape:
            sites.put(name, torch.empty(value.shape, dtype=old.dtype, device=old.device))
            changed.append(name)
    for module in sites.modules(changed):
        refresh_attributes(module)
    # Tensors without memory cannot be copied into; the saved ones take their places.
    small.load_state_dict(dict(state_dict), assign=any(sites.get(name).is_meta for name in sites.ids))
    return small


__all__ = ["compact", "refresh_attributes", "resize_to"]
