"""The check that every network of these tests has to pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pyrobnn.channels import ChannelTable, GateMap, PruningPlan, channel_groups, compact, mask
from pyrobnn.channels.calls import tensors_in
from pyrobnn.report.cost import count


def randomise(net: nn.Module) -> nn.Module:
    """BatchNorm with statistics, scales and shifts that matter; nothing at its initial value of 0 or 1."""
    for module in net.modules():
        if isinstance(module, _NormBase):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return net


def random_half(table: ChannelTable, seed: int = 0) -> PruningPlan:
    generator = torch.Generator().manual_seed(seed)
    keep = {
        group.name: torch.randperm(group.channels, generator=generator)[: max(1, group.channels // 2)].tolist()
        for group in table
    }
    return PruningPlan(keep, table.widths())


def keep_masks(table: ChannelTable, plan: PruningPlan) -> dict[str, Tensor]:
    return {
        name: torch.zeros(table[name].channels, dtype=torch.bool).index_fill(0, torch.tensor(units), True)
        for name, units in plan.keep.items()
    }


def run(net: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    return list(tensors_in(net(*(arg.clone() for arg in args))))


def relative_error(first: list[Tensor], second: list[Tensor]) -> float:
    assert [tuple(t.shape) for t in first] == [tuple(t.shape) for t in second]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in zip(first, second, strict=True))


def check_exact(
    net: nn.Module,
    args: Tensor | tuple[Any, ...],
    *,
    table: ChannelTable | None = None,
    train: bool = True,
    macs: bool = True,
) -> ChannelTable:
    """Cut a random half of all groups at once: mask equals compact, and all figures agree.

    `macs` is False where the table was read at another resolution.
    """
    args = args if isinstance(args, tuple) else (args,)
    randomise(net)
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    table = channel_groups(net, args) if table is None else table
    assert net.training and all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    net.eval()
    assert len(table)
    plan = random_half(table)
    masked = mask(net, plan, args, table)
    small = compact(net, plan, args, table)
    with torch.no_grad():
        whole, ours, smaller = run(net, args), run(masked, args), run(small, args)
    assert relative_error(ours, smaller) < 1e-4
    assert relative_error(whole, ours) > 1e-3  # the cut matters, so the comparison means something

    dense, after = count(net, args), count(small, args)
    whole_price, price = table.cost(), table.cost(keep_masks(table, plan))
    later = table.after(plan)
    assert (dense.params, after.params) == (whole_price.params, price.params)
    assert not macs or (dense.macs, after.macs) == (whole_price.macs, price.macs)
    assert later.cost() == price
    assert after.params < dense.params and after.macs < dense.macs
    assert later.widths() == plan.widths()
    for module in small.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            rows, columns = module.weight.shape[:2]
            ins, outs = module.in_channels, module.out_channels
            transposed = isinstance(module, nn.ConvTranspose2d)
            assert (rows, columns) == ((ins, outs // module.groups) if transposed else (outs, ins // module.groups))

    # A gate of zero masks.
    gates = {name: torch.where(kept, 1.0, 0.0) for name, kept in keep_masks(table, plan).items()}
    if dense.params < 30_000_000:
        gated = copy.deepcopy(net)
        GateMap(table).fold(gated, gates)
        with torch.no_grad():
            assert relative_error(ours, run(gated, args)) < 1e-4
    if train:
        trainable = [p for p in small.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trainable, lr=1e-3)
        small.train()
        sum(out.square().mean() for out in run(small, args)).backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in trainable)
        optimiser.step()
    return table


@pytest.fixture
def exact() -> Callable[..., ChannelTable]:
    return check_exact
