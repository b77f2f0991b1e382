"""A copy of a network for trial cuts, with weights and inputs under which every channel matters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pyrobnn.channels.calls import tensors_in
from pyrobnn.channels.noise import FrozenNoise
from pyrobnn.errors import NetError
from pyrobnn.nets.calling import own_copy, set_mode
from pyrobnn.nets.replica import copy_net

# A wrong channel is far above these; rounding is far below. Batch statistics of three examples divide by small numbers.
_TOLERANCE = {torch.float64: (1e-7, 1e-5), torch.float32: (1e-4, 2e-2)}
# Up to this many parameters the trial runs in float64.
_DOUBLE_UP_TO = 3_000_000
_SIZES = (32, 64, 96)


class Scratch:
    """A copy of a network in which tensors may be changed, and inputs to compare outputs on.

    Weights and inputs are random where the network can take that. Where it gives NaN or raises (a logarithm, a
    square root or an assertion on the input, a learned variance), the example and the network's own weights, first
    varied and then as they are, take their place.

    Args:
        net: the network; it is copied.
        args: arguments of its forward pass.
        double: run in float64 if the network can.

    Attributes:
        net: the copy, in eval mode.
        small: two examples on the smallest square that the network accepts.
        whole: three examples of the size of `args`.
        why_not: why outputs cannot be compared (noise that cannot be frozen), else None.

    Raises:
        NetError: the output has no floating tensor.
    """

    def __init__(self, net: nn.Module, args: tuple[Any, ...], double: bool) -> None:
        self.frozen = False
        self.why_not: str | None = None
        generator = torch.Generator().manual_seed(0)
        for weights, make in ((_randomise, _noise), (_randomise, _example), (_vary, _example), (_keep, _example)):
            self.dtype = torch.float32
            self.net = set_mode(copy_net(net), False)
            for parameter in self.net.parameters():
                parameter.requires_grad_(False)
            weights(self.net, generator)
            self.whole = tuple(make(arg, generator, 3) for arg in args)
            outputs = self._attempt(double, statistics=weights is _randomise, generator=generator)
            if outputs is not None:
                break
        else:
            self.small = self.whole
            outputs = self.outputs(self.small)
        if not any(out.is_floating_point() and out.numel() for out in outputs):
            raise NetError(
                "the network returns no floating tensor that could be compared before and after a cut: return tensors, "
                "or tuples, lists, dicts or objects that hold them"
            )
        if difference(self.outputs(self.small), self.outputs(self.small), 1e-6) is not None:
            self.why_not = "the network gives different outputs for one input (noise that torch does not draw)"

    def _attempt(self, double: bool, statistics: bool, generator: torch.Generator) -> list[Tensor] | None:
        """Choose precision and input size, see whether there is noise; the outputs, or None if they are no good."""
        try:
            with FrozenNoise() as noise:
                wanted = [tuple(out.shape) for out in self.outputs(examples(self.whole, 2))]
            self.frozen = noise.drew
        except Exception:  # whatever the network's own Python says of such numbers
            return None
        if double:
            self._to_double()
        self.small = self._small_input(wanted)
        if statistics:
            _match_statistics(self, generator)
        outputs = self.outputs(self.small)
        return outputs if all(bool(out.isfinite().all()) for out in outputs if out.is_floating_point()) else None

    def _to_double(self) -> None:
        self.net.double()
        if self._runs_double():
            self.whole, self.dtype = as_double(self.whole), torch.float64
        else:
            self.net.float()

    def _runs_double(self) -> bool:
        try:
            self.outputs(as_double(examples(self.whole, 2)))
        except (RuntimeError, TypeError):  # the forward pass has a dtype written into it
            return False
        return True

    @contextmanager
    def double(self) -> Iterator[bool]:
        """The network in float64 for a while; False if it cannot."""
        self.net.double()
        precise = self._runs_double()
        self.dtype = torch.float64 if precise else torch.float32
        if not precise:
            self.net.float()
        try:
            yield precise
        finally:
            self.net.float()
            self.dtype = torch.float32

    def _small_input(self, wanted: list[tuple[int, ...]]) -> tuple[Any, ...]:
        two = examples(self.whole, 2)
        if len(two) == 1 and isinstance(two[0], Tensor) and two[0].dim() == 4:
            for size in _SIZES:
                if min(two[0].shape[2:]) <= size:
                    break
                small = (two[0][:, :, :size, :size].contiguous(),)
                try:
                    shapes = [tuple(out.shape) for out in self.outputs(small)]
                except Exception:  # too small for this network, whatever it says
                    continue
                if shapes == wanted:
                    return small
        return two

    @torch.no_grad()
    def outputs(self, args: tuple[Any, ...]) -> list[Tensor]:
        """All tensors of the network's output; statistics are put back."""
        buffers = {b: b.clone() for b in self.net.buffers()} if self.net.training else {}
        try:
            with FrozenNoise() if self.frozen else nullcontext():
                return list(tensors_in(self.net(*own_copy(args))))
        finally:
            for buffer, value in buffers.items():
                buffer.copy_(value)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train mode, with noise frozen."""
        frozen, self.frozen = self.frozen, True
        self.net.train()
        try:
            yield
        finally:
            self.net.eval()
            self.frozen = frozen

    @property
    def tolerance(self) -> float:
        """Largest relative difference of outputs that is rounding."""
        return _TOLERANCE[self.dtype][bool(self.net.training)]


def difference(masked: list[Tensor], compact: list[Tensor], tolerance: float) -> str | None:
    """A sentence on how two outputs differ beyond a relative tolerance, or None."""
    if len(masked) != len(compact):
        return f"the cut network returns {len(compact)} tensors, not {len(masked)}"
    for first, second in zip(masked, compact, strict=True):
        if first.shape != second.shape:
            return f"the cut network returns shape {tuple(second.shape)}, not {tuple(first.shape)}"
        if not first.is_floating_point() or not first.numel():
            continue
        finite = first.isfinite()
        scale = float(first[finite].abs().max()) if bool(finite.any()) else 0.0
        off = (first - second).abs().masked_fill(first == second, 0.0)
        error = float(off.max()) / max(scale, 1e-30)
        if not error <= tolerance:
            return f"compact differs from mask by {error:.1e} (relative)"
    return None


def runs_double(params: float) -> bool:
    """Whether a network of this size is tried in float64."""
    return params <= _DOUBLE_UP_TO


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
            elif isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm):
                noise.add_(0.5)
            else:
                noise.sub_(0.3)
            parameter.copy_(noise)


def _vary(net: nn.Module, generator: torch.Generator) -> None:
    """The network's own weights, each times a number from 3/4 to 5/4: signs stay."""
    for parameter in net.parameters():
        if parameter.is_floating_point():
            factor = torch.rand(parameter.shape, generator=generator).mul_(0.5).add_(0.75)
            parameter.mul_(factor.to(parameter))


def _keep(net: nn.Module, generator: torch.Generator) -> None:
    """The network's own weights."""


def _match_statistics(scratch: Scratch, generator: torch.Generator) -> None:
    """BatchNorm statistics near those of the input, so that no layer saturates, with noise on top."""
    norms = [m for m in scratch.net.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return

    def measure(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        assert isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None
        x = (inputs[0] if inputs else named["input"]).transpose(0, 1).flatten(1)
        mean, var = x.mean(1), x.var(1, correction=0)
        # Two examples say little about one channel, and dividing by a tiny deviation blows up rounding.
        var = 0.5 * (var + var.mean()) + 0.1 * mean.square() + 1e-6
        shift = torch.randn(mean.shape, generator=generator).to(mean)
        factor = torch.rand(mean.shape, generator=generator).to(mean) + 0.5
        module.running_mean.copy_(mean + 0.3 * shift * var.sqrt())
        module.running_var.copy_(var * factor)

    handles = [norm.register_forward_pre_hook(measure, with_kwargs=True) for norm in norms]
    try:
        scratch.outputs(scratch.small)
    finally:
        for handle in handles:
            handle.remove()


def _noise(arg: Any, generator: torch.Generator, size: int) -> Any:
    if not isinstance(arg, Tensor) or arg.dim() == 0 or not arg.is_floating_point():
        return _example(arg, generator, size)
    return torch.randn((size, *arg.shape[1:]), generator=generator).to(arg)


def _example(arg: Any, generator: torch.Generator, size: int) -> Any:
    if not isinstance(arg, Tensor) or arg.dim() == 0 or not len(arg):
        return arg
    return torch.cat([arg.detach()] * math.ceil(size / len(arg)))[:size]


def examples(args: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """The first examples of all tensors among the arguments."""
    return tuple(arg[:size] if isinstance(arg, Tensor) and arg.dim() else arg for arg in args)


def as_double(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Floating tensors among the arguments in float64."""
    return tuple(arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)
