"""Tries every group: after cutting it, the compact network must equal the masked one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels.parts import ChannelGroup
from pyrobnn.channels.resize import resize_to
from pyrobnn.channels.scratch import Scratch, as_double, difference, examples, runs_double
from pyrobnn.channels.surgery import Sites, Undo, cut_, holders, touched
from pyrobnn.channels.table import ChannelTable
from pyrobnn.nets.calling import main_output, own_copy, set_mode
from pyrobnn.nets.replica import copy_net

# Up to this many parameters times groups, every group is cut alone from the start.
_ALONE_UP_TO = 10_000_000

Cut = Callable[[ChannelGroup, torch.Generator], Tensor]
Keep = dict[str, Tensor]


@torch.no_grad()
def try_groups(net: nn.Module, args: tuple[Any, ...], table: ChannelTable) -> ChannelTable:
    """Refuse every group for which compact and mask differ, with what went wrong as the reason.

    On a small input each group alone loses one unit, a random half, all but two, and all but one. In large networks groups are cut
    several at a time, every group in all four ways and each with ever other companions; a batch that fails is
    halved until the groups at fault are found. Then all groups lose a half together: on inputs of the real size, in
    eval mode with three examples and with one, in train mode (with a backward pass), saved and loaded. What the uncut
    network cannot do either is not asked.

    Raises:
        NetError: the network returns nothing that can be compared.
    """
    if not len(table):
        return table
    params = table.cost().params
    trial = Trial(net, args, table, double=runs_double(params))
    if trial.scratch.why_not is not None:
        return table.without(dict.fromkeys(table.names, trial.scratch.why_not))
    if params * len(table) <= _ALONE_UP_TO:
        reasons = _cut_alone(trial, table.names)
    else:
        reasons = {}
        for batch in _batches(table):
            reasons |= _at_fault(trial.differs, _without(batch, reasons))
    generator = torch.Generator().manual_seed(2)
    half = {group.name: _about_half(group, generator) for group in table}
    for check in (trial.differs, *trial.whole_checks(net)):
        reasons |= _at_fault(check, _without(half, reasons))
    return table.without(reasons) if reasons else table


def _without(batch: Mapping[str, Tensor], names: Iterable[str]) -> Keep:
    return {name: keep for name, keep in batch.items() if name not in set(names)}


def _cut_alone(trial: Trial, names: Iterable[str]) -> dict[str, str]:
    """What went wrong, by name, when each of these groups loses one unit, half, all but two, and all but one."""
    generator = torch.Generator().manual_seed(1)
    reasons: dict[str, str] = {}
    for name in names:
        for cut in (_all_but_one, _about_half, _two_left, _one_left):
            reason = trial.differs({name: cut(trial.table[name], generator)})
            if reason is not None:
                reasons[name] = reason
                break
    return reasons


def _batches(table: ChannelTable) -> list[Keep]:
    """Six cuts of many groups: each group twice a half, once each one unit, all but one and all but two, once not at all.

    The order is random for every group, so that two groups that wrongly depend on each other are cut apart.
    """
    generator = torch.Generator().manual_seed(0)
    ways: tuple[Cut | None, ...] = (_all_but_one, _about_half, _one_left, _about_half, _two_left, None)
    batches: list[Keep] = [{} for _ in ways]
    for group in table:
        for batch, way in zip(batches, torch.randperm(len(ways), generator=generator).tolist(), strict=True):
            cut = ways[way]
            if cut is not None:
                batch[group.name] = cut(group, generator)
    return batches


def _at_fault(check: Callable[[Keep], str | None], batch: Keep) -> dict[str, str]:
    """The groups because of which a check fails, with what it says; found by halving."""
    if not batch:
        return {}
    reason = check(batch)
    if reason is None:
        return {}
    if len(batch) == 1:
        return dict.fromkeys(batch, reason)
    names = list(batch)
    halves = [{name: batch[name] for name in part} for part in (names[::2], names[1::2])]
    reasons = {name: why for half in halves for name, why in _at_fault(check, half).items()}
    rest = _without(batch, reasons)
    if check(rest) is None:
        return reasons
    # Right by halves, but not together: keep adding while it holds.
    good: Keep = {}
    for name, keep in rest.items():
        why = check({**good, name: keep})
        if why is None:
            good[name] = keep
        else:
            reasons[name] = f"{why} (together with other groups)"
    return reasons


def _all_but_one(group: ChannelGroup, generator: torch.Generator) -> Tensor:
    keep = torch.ones(group.channels, dtype=torch.bool)
    keep[int(torch.randint(group.channels, (1,), generator=generator))] = False
    return keep


def _one_left(group: ChannelGroup, generator: torch.Generator) -> Tensor:
    return ~_all_but_one(group, generator)


def _two_left(group: ChannelGroup, generator: torch.Generator) -> Tensor:
    keep = torch.zeros(group.channels, dtype=torch.bool)
    keep[torch.randperm(group.channels, generator=generator)[:2]] = True
    return keep


def _about_half(group: ChannelGroup, generator: torch.Generator) -> Tensor:
    """Cut between a third and two thirds; how many is random, so that two groups rarely lose the same number."""
    low, high = max(1, group.channels // 3), max(2, min(group.channels, 1 + 2 * group.channels // 3))
    keep = torch.ones(group.channels, dtype=torch.bool)
    count = int(torch.randint(low, high, (1,), generator=generator))
    keep[torch.randperm(group.channels, generator=generator)[:count]] = False
    return keep


class Trial:
    """Cuts that are made on a scratch copy of a network and taken back.

    Args:
        net: the network; it is copied.
        args: arguments of its forward pass.
        table: its channel table.
        double: run in float64 if the network can.
    """

    def __init__(self, net: nn.Module, args: tuple[Any, ...], table: ChannelTable, double: bool) -> None:
        self.table = table
        self.scratch = Scratch(net, args, double)
        self.sites = Sites(self.scratch.net)

    def differs(self, keep: Keep) -> str | None:
        """What is wrong with this cut on the small input, or None if compact equals mask."""
        return self._compared(keep, self.scratch.small)

    def whole_checks(self, net: nn.Module) -> list[Callable[[Keep], str | None]]:
        """What else a compact network must do, of what the uncut one can: each a check like :meth:`differs`."""
        scratch = self.scratch
        three, one = scratch.whole, examples(scratch.whole, 1)
        checks: list[Callable[[Keep], str | None]] = []
        if _runs(lambda: scratch.outputs(one)):
            checks.append(lambda keep: self._compared(keep, one))
        if _runs(lambda: scratch.outputs(three)):
            checks.append(lambda keep: self._compared(keep, three))
        with scratch.training():
            trains = _runs(lambda: scratch.outputs(three))
            backward = trains and _runs(self._backward)
        if trains:
            checks.append(lambda keep: self._in_train_mode(keep, three))
        if backward:
            checks.append(lambda keep: self._runs_backward(keep))
        dense = copy_net(net)
        if self._loads({}, dense) is None:
            checks.append(lambda keep: self._loads(keep, dense))
        return checks

    def _backward(self) -> None:
        with torch.enable_grad():
            for parameter in self.scratch.net.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            try:
                output = main_output(self.scratch.net(*own_copy(self.scratch.small)))
                output.sum().backward()
            finally:
                for parameter in self.scratch.net.parameters():
                    parameter.requires_grad_(False)
                    parameter.grad = None

    def _leaves_nothing(self, flat: Tensor) -> bool:
        axes = (units for axes in self.table.cut_axes.values() for units in axes.values())
        return any(not bool(flat[units].any()) for units in axes)  # refused when a plan asks for it

    def _compared(self, keep: Keep, args: tuple[Any, ...]) -> str | None:
        """What is wrong with this cut on these inputs; a difference in float32 counts if float64 has it too."""
        flat = self.table.flat(keep, fill=True).bool()
        if self._leaves_nothing(flat):
            return None
        reason = self._difference(flat, args)
        if reason is not None and self.scratch.dtype is torch.float32 and reason.startswith("compact differs"):
            with self.scratch.double() as precise:
                if precise:
                    return self._difference(flat, as_double(args))
        return reason

    def _difference(self, flat: Tensor, args: tuple[Any, ...]) -> str | None:
        masked = self._masked(flat, args)
        compact = self._compact(flat, lambda: self.scratch.outputs(args))
        if isinstance(compact, str):
            return compact
        return difference(masked, compact, self.scratch.tolerance)

    def _in_train_mode(self, keep: Keep, args: tuple[Any, ...]) -> str | None:
        with self.scratch.training():
            reason = self._compared(keep, args)
        return f"{reason} (in train mode)" if reason is not None else None

    def _runs_backward(self, keep: Keep) -> str | None:
        flat = self.table.flat(keep, fill=True).bool()
        if self._leaves_nothing(flat):
            return None
        with self.scratch.training():
            outcome = self._compact(flat, self._backward)
        return f"{outcome} (in a backward pass)" if isinstance(outcome, str) else None

    def _loads(self, keep: Keep, dense: nn.Module) -> str | None:
        """Saved and loaded into the dense network (a copy), the compact network is what it was."""
        flat = self.table.flat(keep, fill=True).bool()
        if self._leaves_nothing(flat):
            return None

        def again() -> str | None:
            undo, given = Undo(dense.modules()), self.scratch.net
            try:
                made = resize_to(dense, given.state_dict(), copy=False)
                self.scratch.net = set_mode(made, False).to(self.scratch.dtype)
                loaded = self.scratch.outputs(self.scratch.small)
            finally:
                self.scratch.net = given
                undo()
            return difference(self.scratch.outputs(self.scratch.small), loaded, self.scratch.tolerance)

        outcome = self._compact(flat, again)
        return f"{outcome} (saved and loaded)" if isinstance(outcome, str) else None

    def _compact(self, flat: Tensor, do: Callable[[], Any]) -> Any:
        """What `do` returns while the cut is made, or a sentence on what it raised."""
        undo = Undo(holders(self.sites, self.table, touched(self.table, flat)))
        try:
            cut_(self.sites, self.table, flat)
            return do()
        except Exception as error:  # whatever the network's own Python raises
            return f"the cut network does not run ({type(error).__name__}: {first_line(error)})"
        finally:
            undo()

    def _masked(self, keep: Tensor, args: tuple[Any, ...]) -> list[Tensor]:
        """Outputs with zeros in place, which are then taken back: large layers are not copied."""
        saved = []
        for name, axes in self.table.read_axes.items():
            for axis, units in axes.items():
                gone = (~keep[units]).nonzero().squeeze(1)
                if gone.numel():
                    tensor = self.sites.get(name).detach()
                    gone = gone.to(tensor.device)
                    saved.append((tensor, axis, gone, tensor.index_select(axis, gone)))
                    tensor.index_fill_(axis, gone, 0)
        try:
            return self.scratch.outputs(args)
        finally:
            for tensor, axis, gone, values in reversed(saved):
                tensor.index_copy_(axis, gone, values)


def _runs(do: Callable[[], Any]) -> bool:
    try:
        do()
    except Exception:  # whatever the network's own Python raises
        return False
    return True


def first_line(error: Exception) -> str:
    """The beginning of an error message."""
    return (str(error).strip().splitlines() or [""])[0][:120]
