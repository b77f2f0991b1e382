"""Rebuilds a compact network from the dense one and the shapes of the saved tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels.surgery import Sites, refresh_attributes, restore_sizes
from pyrobnn.errors import NetError
from pyrobnn.nets.replica import copy_net


@torch.no_grad()
def resize_to(net: nn.Module, state_dict: Mapping[str, Tensor], *, copy: bool = True) -> nn.Module:
    """Turn a dense network into a compact one of the saved shapes, and load the saved tensors.

    Args:
        net: the network as its factory builds it; it is copied. On the `meta` device only its shapes matter: the
            result is on the CPU, and takes the memory of the saved tensors.
        state_dict: tensors of a compact network of the same kind.
        copy: False changes `net` itself.

    Returns:
        The compact network.

    Raises:
        NetError: a tensor is missing, unexpected, empty, or of another number of axes.
    """
    small = copy_net(net) if copy else net
    restore_sizes(small, state_dict)
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
        if not value.numel() and old.numel():
            raise NetError(
                f"expected numbers in {name!r}, got shape {tuple(value.shape)}: no network of ours keeps nothing"
            )
        if old.shape != value.shape:
            sites.put(name, torch.empty(value.shape, dtype=old.dtype, device=old.device))
            changed.append(name)
    for module in sites.modules(changed):
        refresh_attributes(module)
    loaded: Any = OrderedDict(state_dict)
    loaded._metadata = getattr(expected, "_metadata", None)  # files do not have the versions that some layers ask for
    # Tensors without memory cannot be copied into; the saved ones take their places.
    small.load_state_dict(loaded, assign=any(sites.get(name).is_meta for name in sites.ids))
    return small
