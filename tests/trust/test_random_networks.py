"""Random networks, ordinary and adversarial, with random plans: what is cut is exact, what is not is refused.

`PYROBNN_TRUST=full` tries a thousand; a failure is made smaller by leaving steps out.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pyrobnn.channels import ChannelTable, PruningPlan, channel_groups, compact, mask, resize_to
from pyrobnn.channels.noise import FrozenNoise
from pyrobnn.errors import PyrobnnError
from pyrobnn.report.cost import count as measure

_spec = importlib.util.spec_from_file_location("trust_networks", Path(__file__).with_name("networks.py"))
assert _spec is not None and _spec.loader is not None
networks: Any = importlib.util.module_from_spec(_spec)
sys.modules["trust_networks"] = networks
_spec.loader.exec_module(networks)

FULL = os.environ.get("PYROBNN_TRUST") == "full"
COUNT = 500 if FULL else 12
CHUNK = 25 if FULL else 6
CUTTABLE = 0.92


def random_plan(table: ChannelTable, seed: int) -> PruningPlan:
    """Between one unit and all of them, of every group."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in table:
        left = 1 + int(torch.randint(group.channels, (1,), generator=generator))
        keep[group.name] = torch.randperm(group.channels, generator=generator)[:left].tolist()
    return PruningPlan(keep, table.widths())


def fault(spec: Any, seed: int) -> str | None:
    """What is wrong with what is made of this network, or None."""
    net, x = networks.make(spec), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = channel_groups(net, x)
    except PyrobnnError:
        return None
    if not net.training or any(not torch.equal(value, state[name]) for name, value in net.state_dict().items()):
        return "the caller's network changed"
    plan = random_plan(table, seed)
    try:
        masked, small = mask(net, plan, None, table), compact(net, plan, None, table)
    except PyrobnnError as error:
        return None if "leaves nothing of axis" in str(error) else f"refused late: {error}"
    again = resize_to(net, small.state_dict())
    for batch in (x, x[:1]):
        for module in (net, masked, small, again):
            module.eval()
        with torch.no_grad(), FrozenNoise():
            wanted, got, loaded = (module(batch) for module in (masked, small, again))
        if not bool(wanted.isfinite().all()):
            continue
        error = float((wanted - got).abs().max() / wanted.abs().max().clamp_min(1e-6))
        if error > 1e-4 or wanted.shape != got.shape:
            return f"compact differs from mask by {error:.1e} with {len(batch)} examples"
        if not torch.allclose(got, loaded, rtol=1e-5, atol=1e-6):
            return "the loaded network differs"
    if can_train(net, x) and not can_train(small, x):
        return "the compact network does not train"
    masks = {
        n: torch.zeros(plan.channels[n], dtype=torch.bool).index_fill(0, torch.tensor(u), True)
        for n, u in plan.keep.items()
    }
    cost, measured = table.cost(masks), measure(small, x)
    if (cost.params, cost.macs) != (measured.params, measured.macs):
        return f"the table says {cost}, measured {measured}"
    return None


def can_train(net: nn.Module, x: torch.Tensor) -> bool:
    try:
        net.train()(x.clone()).sum().backward()
    except RuntimeError:
        return False
    return True


def smallest(spec: Any, seed: int) -> tuple[Any, str]:
    """The same fault with as few steps as show it."""
    why = fault(spec, seed)
    assert why is not None
    at = 0
    while at < len(spec):
        less = spec[:at] + spec[at + 1 :]
        found = fault(less, seed)
        if found is None:
            at += 1
        else:
            spec, why = less, found
    return spec, why


@pytest.mark.parametrize("hard", [False, True], ids=["ordinary", "adversarial"])
@pytest.mark.parametrize("start", range(0, COUNT, CHUNK))
def test_what_is_cut_is_exact(start: int, hard: bool, count: Callable[..., None]) -> None:
    for seed in range(start, start + CHUNK):
        spec = networks.random_spec(seed, hard)
        if fault(spec, seed) is not None:
            pytest.fail(f"seed {seed}: {smallest(spec, seed)}")
    count("adversarial random networks" if hard else "ordinary random networks", tried=CHUNK, silent_errors=0)


def share_cut(net: nn.Module, table: ChannelTable) -> tuple[int, int]:
    """Channels that can be cut, and all that convolutions and linear layers make, depthwise ones and the head apart."""
    made = 0
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.groups != module.out_channels:
            made += module.out_channels
        elif isinstance(module, nn.Linear) and name != "head":
            made += module.out_features
    cut = 0
    for group in table:
        cut += sum(
            int((m.index >= 0).sum()) for m in group.members if m.role in ("out", "through") and _is_weight(net, m)
        )
    return cut, made


def _is_weight(net: nn.Module, member: Any) -> bool:
    path, _, leaf = member.tensor.rpartition(".")
    module = net.get_submodule(path)
    if leaf != "weight" or not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return False
    if isinstance(module, nn.Linear):
        return member.axis == 0
    return module.groups != module.out_channels and member.axis == (1 if isinstance(module, nn.ConvTranspose2d) else 0)


def test_ordinary_networks_can_be_cut(count: Callable[..., None]) -> None:
    cut = made = 0
    refused: dict[str, int] = {}
    for seed in range(60 if FULL else 12):
        net = networks.make(networks.random_spec(seed, False))
        table = channel_groups(net, torch.randn(2, 3, 8, 8))
        here, all_here = share_cut(net, table)
        cut, made = cut + here, made + all_here
        for reason in table.refused.values():
            refused[reason.split(" in ")[0]] = refused.get(reason.split(" in ")[0], 0) + 1
    count("ordinary random networks", channels=made, channels_that_can_be_cut=cut)
    assert cut >= CUTTABLE * made, refused
