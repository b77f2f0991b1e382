"""Trying every group: cut alone, the compact network must equal the masked one."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pyrobnn.errors import PlanError
from pyrobnn.groups.surgery import Sites, Undo, cut_, mask_
from pyrobnn.groups.table import ChannelGroup, ChannelTable
from pyrobnn.groups.trace import tensors_in

# In float64, rounding is near 1e-15 and a wrong channel is far above this.
_TOLERANCE = 1e-7
_TOLERANCE_SINGLE = 1e-4
_SIZES = (32, 64, 96)


@torch.no_grad()
def try_groups(net: nn.Module, args: tuple[Any, ...], table: ChannelTable) -> ChannelTable:
    """Refuse every group for which compact and mask differ, with what went wrong as the reason.

    Each group loses one unit, then a random half, on a small input with random weights and BatchNorm statistics;
    then all groups together.
    """
    if not len(table):
        return table
    trial = Trial(net, args, table)
    generator = torch.Generator().manual_seed(0)
    reasons: dict[str, str] = {}
    for group in table:
        for cut in _cuts(group, generator):
            reason = trial.differs({group.name: cut})
            if reason is not None:
                reasons[group.name] = reason
                break
    halves = {g.name: _cuts(g, generator)[-1] for g in table if g.name not in reasons}
    if halves and trial.differs(halves) is not None:
        halves = _agreeing(trial, halves, reasons)
    return table.without(reasons) if reasons else table


def _cuts(group: ChannelGroup, generator: torch.Generator) -> list[Tensor]:
    """Two keep masks: all but one unit, and a random half."""
    order = torch.randperm(group.channels, generator=generator)
    one = torch.ones(group.channels, dtype=torch.bool)
    one[order[0]] = False
    half = torch.ones(group.channels, dtype=torch.bool)
    half[order[: max(1, group.channels // 2)]] = False
    return [one] if group.channels < 3 else [one, half]


def _agreeing(trial: Trial, halves: dict[str, Tensor], reasons: dict[str, str]) -> dict[str, Tensor]:
    """Groups that are right alone but not together: keep adding while mask and compact agree."""
    good: dict[str, Tensor] = {}
    for name, half in halves.items():
        reason = trial.differs({**good, name: half})
        if reason is None:
            good[name] = half
        else:
            reasons[name] = f"{reason} (together with other groups)"
    return good


class Trial:
    """A scratch copy of a network with random weights, on which cuts are made and taken back.

    Args:
        net: the network; it is copied.
        args: arguments of its forward pass.
        table: its channel table.
    """

    def __init__(self, net: nn.Module, args: tuple[Any, ...], table: ChannelTable) -> None:
        self.table = table
        self.net = copy.deepcopy(net).eval()
        self.tolerance = _TOLERANCE
        generator = torch.Generator().manual_seed(0)
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)
        _randomise(self.net, generator)
        self.args = self._small_input(args, generator)
        self.sites = Sites(self.net)

    def _small_input(self, args: tuple[Any, ...], generator: torch.Generator) -> tuple[Any, ...]:
        """Noise of two examples in float64, on the smallest square the network accepts."""
        two = tuple(_noise(arg, generator) for arg in args)
        whole = self._run(two)
        wanted = [tuple(out.shape) for out in tensors_in(whole)]
        single = two
        try:
            self.net.double()
            two = tuple(_double(arg) for arg in two)
            self._run(two)
        except (RuntimeError, TypeError):  # the forward pass has a dtype written into it
            self.net.float()
            two, self.tolerance = single, _TOLERANCE_SINGLE
        if len(two) == 1 and isinstance(two[0], Tensor) and two[0].dim() == 4:
            for size in _SIZES:
                if min(two[0].shape[2:]) <= size:
                    break
                small = (two[0][:, :, :size, :size].contiguous(),)
                try:
                    shapes = [tuple(out.shape) for out in tensors_in(self._run(small))]
                except (RuntimeError, ValueError):
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
        changed = [*self.table.cut_axes, *self.table.read_axes, *self.table.facts.maps]
        names = dict.fromkeys(name for name in changed if self._is_touched(name, keep))
        undo = Undo(self.sites.modules(names))
        try:
            mask_(self.sites, self.table, flat)
            masked = self.outputs()
        finally:
            undo()
        try:
            cut_(self.sites, self.table, flat)
            compact = self.outputs()
        except PlanError:
            return None  # such a cut is refused when it is asked for
        except Exception as error:
            return f"the cut network does not run ({type(error).__name__}: {_first_line(error)})"
        finally:
            undo()
        return compare(masked, compact, self.tolerance)

    def _is_touched(self, name: str, keep: Iterable[str]) -> bool:
        names = set(keep)
        return any(m.tensor == name for g in self.table if g.name in names for m in g.members) or any(
            group in names for group, _ in self.table.facts.maps[name].units
        ) if name in self.table.facts.maps else any(
            m.tensor == name for g in self.table if g.name in names for m in g.members
        )


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
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                noise = noise * (2.0 / max(1, parameter[0].numel())) ** 0.5
            elif isinstance(module, _NormBase):
                noise = 1.0 + 0.3 * noise
            else:
                noise = 0.3 * noise + 0.2
            parameter.copy_(noise.to(parameter))


def _match_statistics(net: nn.Module, args: tuple[Any, ...], generator: torch.Generator) -> None:
    """BatchNorm statistics near those of the input, so that no layer saturates, with noise on top."""
    norms = [m for m in net.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None
        x = inputs[0].transpose(0, 1).flatten(1)
        mean, var = x.mean(1), x.var(1, correction=0)
        shift = torch.randn(mean.shape, generator=generator).to(mean)
        factor = torch.rand(mean.shape, generator=generator).to(mean) + 0.5
        module.running_mean.copy_(mean + 0.3 * shift * (var + 1e-6).sqrt())
        module.running_var.copy_((var + 1e-3) * factor)

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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120]
