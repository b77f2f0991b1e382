"""Checks a cut on real images: the compact network must equal the masked one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels.calls import tensors_in
from pyrobnn.channels.compact import compact
from pyrobnn.channels.gates import GateMap
from pyrobnn.channels.noise import FrozenNoise
from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.scratch import difference
from pyrobnn.channels.table import ChannelTable
from pyrobnn.errors import PlanError
from pyrobnn.nets.calling import batch_for, eval_mode
from pyrobnn.nets.functional import call_with

_TOLERANCE = 1e-3  # of float32 with trained weights, of the largest output


@torch.no_grad()
def check_cut(net: nn.Module, small: nn.Module, plan: PruningPlan, table: ChannelTable, images: Tensor) -> None:
    """Compare the masked and the compact network; neither is changed.

    Args:
        net: the network that was cut.
        small: what `compact` made of it.
        plan: what was kept.
        table: of `net`.
        images: real ones, ``[B, C, H, W]``, on the device of the networks.

    Raises:
        PlanError: the outputs differ; the group that is at fault is named.
    """
    if plan.is_full or not len(images):
        return
    reason = _differs(net, small, plan, table, images)
    if reason is None:
        return
    for name, units in plan.keep.items():
        alone = PruningPlan({name: units}, {name: plan.channels[name]})
        why = None if alone.is_full else _differs(net, compact(net, alone, None, table), alone, table, images)
        if why is not None:
            raise PlanError(f"group {name!r} cannot be cut on these images ({why}): protect it")
    raise PlanError(
        f"the groups of this network cannot be cut together on these images ({reason}): protect some of them"
    )


def _differs(net: nn.Module, small: nn.Module, plan: PruningPlan, table: ChannelTable, images: Tensor) -> str | None:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    gates = {}
    for name, units in plan.keep.items():
        gates[name] = torch.zeros(plan.channels[name], device=images.device)
        gates[name][units] = 1.0
    masked = GateMap(table).apply(tensors, gates)
    with eval_mode(net), eval_mode(small), torch.random.fork_rng(devices=[]), FrozenNoise():
        wanted = list(tensors_in(call_with(net, masked, (batch_for(net, images),))))
        try:
            got: Any = list(tensors_in(small(batch_for(small, images))))
        except Exception as error:  # whatever the network's own Python raises
            return f"the cut network does not run: {type(error).__name__}: {error}"
    return difference(wanted, got, _TOLERANCE)
