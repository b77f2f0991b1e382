"""Trying every group: cut alone, the compact network must equal the masked one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pyrobnn.channels.parts import ChannelGroup
from pyrobnn.channels.surgery import Sites, Undo, cut_, touched
from pyrobnn.channels.table import ChannelTable
from pyrobnn.channels.tracer import tensors_in
from pyrobnn.nets.calling import set_mode
from pyrobnn.nets.replica import copy_net

# A wrong channel is far above both; rounding is far below.
_TOLERANCE_DOUBLE = 1e-7
_TOLERANCE_SINGLE = 1e-4
# Up to this many parameters the trial runs in float64.
_DOUBLE_UP_TO = 3_000_000
# Up to this many parameters times groups, every group is cut alone from the start.
_ALONE_UP_TO = 10_000_000
_SIZES = (32, 64, 96)


@torch.no_grad()
def try_groups(net: nn.Module, args: tuple[Any, ...], table: ChannelTable) -> ChannelTable:
    """Refuse every group for which compact and mask differ, with what went wrong as the reason.

    Each group alone loses one unit, then a random half, on a small input with random weights and BatchNorm statistics;
    then all groups together. In large networks groups are first cut in batches, chosen so that for any two groups
    there is a batch with the one and without the other; only the groups of batches that fail are then cut alone.
    """
    if not len(table):
        return table
    params = table.cost().params
    if params > _DOUBLE_UP_TO:
        # Rounding in a deep network is no reason to refuse anything: what fails here is tried again in float64.
        quick = Trial(net, args, table, double=False)
        if all(quick.differs(batch) is None for batch in _batches(table)):
            return table
    trial = Trial(net, args, table, double=True)
    if len(table) * params <= _ALONE_UP_TO:
        reasons = _cut_alone(trial, table.names)
    else:
        reasons = _cut_in_batches(trial)
    together = _without(_batches(table)[-1], reasons)
    if trial.differs(together) is not None:
        reasons |= _cut_one_more(trial, together)
    return table.without(reasons) if reasons else table


def _batches(table: ChannelTable) -> list[dict[str, Tensor]]:
    """Cuts of many groups: those whose number has a given bit, those that have it not, and all."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for bit in range((len(table) - 1).bit_length()):
        for value, cut in ((0, _all_but_one), (1, _about_half)):
            chosen = [group for at, group in enumerate(table) if (at >> bit) & 1 == value]
            batches.append({group.name: cut(group, generator) for group in chosen})
    batches.append({group.name: _all_but_one(group, generator) for group in table})
    batches.append({group.name: _about_half(group, generator) for group in table})
    return batches


def _without(batch: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    return {name: keep for name, keep in batch.items() if name not in set(names)}


def _cut_alone(trial: Trial, names: Iterable[str]) -> dict[str, str]:
    """What went wrong, by name, when each of these groups loses one unit, and half."""
    generator = torch.Generator().manual_seed(1)
    reasons: dict[str, str] = {}
    for name in names:
        for cut in (_all_but_one, _about_half):
            reason = trial.differs({name: cut(trial.table[name], generator)})
            if reason is not None:
                reasons[name] = reason
                break
    return reasons


def _cut_in_batches(trial: Trial) -> dict[str, str]:
    """Cut batches, then the groups that were in no good batch alone, then what still does not agree."""
    batches = _batches(trial.table)
    fails = [trial.differs(batch) is not None for batch in batches]
    failing = [batch for batch, failed in zip(batches, fails, strict=True) if failed]
    good = {name for batch, failed in zip(batches, fails, strict=True) if not failed for name in batch}
    reasons = _cut_alone(trial, [name for name in trial.table.names if name not in good])
    for batch in failing:
        rest = _without(batch, reasons)
        if trial.differs(rest) is not None:
            reasons |= _cut_alone(trial, rest)
    return reasons


def _cut_one_more(trial: Trial, together: dict[str, Tensor]) -> dict[str, str]:
    """Groups that are right alone but not together: keep adding while mask and compact agree."""
    good: dict[str, Tensor] = {}
    reasons = {}
    for name, keep in together.items():
        reason = trial.differs({**good, name: keep})
        if reason is None:
            good[name] = keep
        else:
            reasons[name] = f"{reason} (together with other groups)"
    return reasons


def _all_but_one(group: ChannelGroup, generator: torch.Generator) -> Tensor:
    keep = torch.ones(group.channels, dtype=torch.bool)
    keep[int(torch.randint(group.channels, (1,), generator=generator))] = False
    return keep


def _about_half(group: ChannelGroup, generator: torch.Generator) -> Tensor:
    """Cut between a third and two thirds; how many is random, so that two groups rarely lose the same number."""
    low, high = max(1, group.channels // 3), max(2, min(group.channels, 1 + 2 * group.channels // 3))
    keep = torch.ones(group.channels, dtype=torch.bool)
    count = int(torch.randint(low, high, (1,), generator=generator))
    keep[torch.randperm(group.channels, generator=generator)[:count]] = False
    return keep


class Trial:
    """A scratch copy of a network with random weights, on which cuts are made and taken back.

    Args:
        net: the network; it is copied.
        args: arguments of its forward pass.
        table: its channel table.
        double: run in float64 if the network can.
    """

    def __init__(self, net: nn.Module, args: tuple[Any, ...], table: ChannelTable, double: bool) -> None:
        self.table = table
        self.net = set_mode(copy_net(net), False)
        self.tolerance = _TOLERANCE_SINGLE
        generator = torch.Generator().manual_seed(0)
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)
        _randomise(self.net, generator)
        self.args = self._small_input(args, generator, double)
        self.sites = Sites(self.net)

    def _small_input(self, args: tuple[Any, ...], generator: torch.Generator, double: bool) -> tuple[Any, ...]:
        """Noise of two examples, on the smallest square the network accepts."""
        two = tuple(_noise(arg, generator) for arg in args)
        whole = self._run(two)
        wanted = [tuple(out.shape) for out in tensors_in(whole)]
        if double:
            single = two
            try:
                self.net.double()
                two = tuple(_double(arg) for arg in two)
                self._run(two)
                self.tolerance = _TOLERANCE_DOUBLE
            except (RuntimeError, TypeError):  # the forward pass has a dtype written into it
                self.net.float()
                two = single
        if len(two) == 1 and isinstance(two[0], Tensor) and two[0].dim() == 4:
            for size in _SIZES:
                if min(two[0].shape[2:]) <= size:
                    break
                small = (two[0][:, :, :size, :size].contiguous(),)
                try:
                    shapes = [tuple(out.shape) for out in tensors_in(self._run(small))]
                except Exception:  # too small for this network, whatever it says
                    continue
                if shapes == wanted:
                    two = small
                    break
        _match_statistics(self.net, two, generator)
        return two

    def _run(self, args: tuple[Any, ...]) -> Any:
        return self.net(*(arg.clone() if isinstance(arg, Tensor) else arg for arg in args))

    def outputs(self) -> list[Tensor]:
        """All tensors of the network's output."""
        return list(tensors_in(self._run(self.args)))

    def differs(self, keep: dict[str, Tensor]) -> str | None:
        """What is wrong with this cut, or None if compact equals mask."""
        flat = self.table.flat(keep, fill=True).bool()
        if any(not bool(flat[units].any()) for axes in self.table.cut_axes.values() for units in axes.values()):
            return None  # leaves nothing of a layer: refused when a plan asks for it
        masked = self._masked(flat)
        undo = Undo(self.sites.modules(touched(self.table, flat)))
        try:
            cut_(self.sites, self.table, flat)
            compact = self.outputs()
        except Exception as error:
            return f"the cut network does not run ({type(error).__name__}: {first_line(error)})"
        finally:
            undo()
        return compare(masked, compact, self.tolerance)

    def _masked(self, keep: Tensor) -> list[Tensor]:
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
        outputs = self.outputs()
        for tensor, axis, gone, values in reversed(saved):
            tensor.index_copy_(axis, gone, values)
        return outputs


def compare(masked: list[Tensor], compact: list[Tensor], tolerance: float) -> str | None:
    """A sentence on how two outputs differ beyond a relative tolerance, or None."""
    if len(masked) != len(compact):
        return f"the cut network returns {len(compact)} tensors, not {len(masked)}"
    for first, second in zip(masked, compact, strict=True):
        if first.shape != second.shape:
            return f"the cut network returns shape {tuple(second.shape)}, not {tuple(first.shape)}"
        if not first.is_floating_point():
            continue
        scale = first.abs().max().clamp_min(1e-30) if first.numel() else torch.ones(())
        error = ((first - second).abs().max() / scale) if first.numel() else torch.zeros(())
        if not bool(error <= tolerance):
            return f"compact differs from mask by {float(error):.1e} (relative)"
    return None


def _randomise(net: nn.Module, generator: torch.Generator) -> None:
    """Weights of the usual size and no zeros, so that every channel matters."""
    seen: set[int] = set()
    for module in net.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            noise = torch.rand(parameter.shape, generator=generator)
            if parameter.dim() >= 2:  # variance 2 / fan-in
                noise.sub_(0.5).mul_((24.0 / max(1, parameter[0].numel())) ** 0.5)
            elif isinstance(module, _NormBase):
                noise.add_(0.5)
            else:
                noise.sub_(0.3)
            parameter.copy_(noise)


def _match_statistics(net: nn.Module, args: tuple[Any, ...], generator: torch.Generator) -> None:
    """BatchNorm statistics near those of the input, so that no layer saturates, with noise on top."""
    norms = [m for m in net.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None
        x = inputs[0].transpose(0, 1).flatten(1)
        mean, var = x.mean(1), x.var(1, correction=0)
        # Two examples say little about one channel, and dividing by a tiny deviation blows up rounding.
        var = 0.5 * (var + var.mean()) + 0.1 * mean.square() + 1e-6
        shift = torch.randn(mean.shape, generator=generator).to(mean)
        factor = torch.rand(mean.shape, generator=generator).to(mean) + 0.5
        module.running_mean.copy_(mean + 0.3 * shift * var.sqrt())
        module.running_var.copy_(var * factor)

    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        net(*(arg.clone() if isinstance(arg, Tensor) else arg for arg in args))
    finally:
        for handle in handles:
            handle.remove()


def _noise(arg: Any, generator: torch.Generator) -> Any:
    if not isinstance(arg, Tensor) or arg.dim() == 0:
        return arg
    if not arg.is_floating_point():
        return torch.cat([arg, arg])[:2]
    return torch.randn((2, *arg.shape[1:]), generator=generator).to(arg)


def _double(arg: Any) -> Any:
    return arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg


def first_line(error: Exception) -> str:
    """The beginning of an error message."""
    return (str(error).strip().splitlines() or [""])[0][:120]
