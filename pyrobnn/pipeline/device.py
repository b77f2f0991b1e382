"""What a run measures on its device before it begins: the times of layers, and the multiple of channels that is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import ChannelTable
from pyrobnn.channels.planner import as_targets, plan_for_budget
from pyrobnn.channels.times import LayerTimes
from pyrobnn.channels.timing import preferred_multiple, time_layers
from pyrobnn.inference.precision import resolve_device
from pyrobnn.metrics.latency import smallest_batch
from pyrobnn.pipeline.config import CompressionConfig
from pyrobnn.pipeline.context import limits


def on_this_device(config: CompressionConfig, net: nn.Module, table: ChannelTable, example: Tensor) -> dict[str, Any]:
    """What the options ask to be measured, as plain values; a resumed run goes on with those of its beginning.

    Args:
        config: `target_latency` and `round_to="auto"` ask for it.
        net, table: the dense network and its channels.
        example: some inputs.

    Returns:
        `times` (:meth:`~pyrobnn.channels.times.LayerTimes.data`) and `round_to`, each where it is asked for.
    """
    found: dict[str, Any] = {}
    if config.target_latency is None and config.round_to != "auto":
        return found
    device = resolve_device(config.device)
    batch = smallest_batch(net.to(device), example.to(device))
    net.cpu()
    if config.target_latency is not None:
        times = time_layers(net, table, example, batch=batch, device=device).facts.times
        assert times is not None
        found["times"] = times.data()
    if config.round_to == "auto":
        found["round_to"] = preferred_multiple(net, example, batch=batch, device=device)
    return found


def said(measured: Mapping[str, Any], table: ChannelTable) -> str:
    """What was measured, in a line."""
    parts = []
    if table.facts.times is not None:
        whole, fixed = float(table.cost(None).latency), table.facts.times.fixed
        parts.append(f"one image takes {whole:.3g} ms on this device, of which no width changes {fixed:.3g} ms")
    if "round_to" in measured:
        parts.append(f"channels in multiples of {measured['round_to']} cost it nothing more")
    return "; ".join(parts)


def settled_by(
    measured: Mapping[str, Any], config: CompressionConfig, table: ChannelTable
) -> tuple[CompressionConfig, ChannelTable]:
    """The options and the channel table with what was measured.

    Raises:
        PlanError: a budget below what the limits leave: said now, before hours of training.
    """
    if "times" in measured:
        table = table.timed(LayerTimes.from_data(measured["times"]))
    if "round_to" in measured:
        config = replace(config, round_to=measured["round_to"])
    if config.has_budget:
        nothing = {group.name: torch.zeros(group.channels) for group in table}
        plan_for_budget(nothing, table, limits=limits(config), **as_targets(config.budget))
    return config, table
