"""Measuring what the layers of a network cost by their widths."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyrobnn.channels.read import Example, small_batch
from pyrobnn.channels.table import ChannelTable
from pyrobnn.channels.times import LayerTimes
from pyrobnn.channels.tracer import operation_name, tensors_in
from pyrobnn.errors import ConfigError
from pyrobnn.io.measured import Measurements
from pyrobnn.metrics.latency import stopwatch
from pyrobnn.nets.calling import own_copy, set_mode
from pyrobnn.nets.replica import copy_net, unwrap

SHARES = (1 / 16, 1 / 4, 1 / 2, 3 / 4)  # of a layer's width at which it is timed
MULTIPLES = (1, 2, 4, 8, 16, 32)
FREE = 1.02  # a multiple that costs no more than this against the best of them is free
PASSES = 9
SECONDS = 0.01  # that a layer is timed for at each width, if that is not under three passes
MOST_COPIES = 16  # of a layer's weights
_LAYERS = {"linear", *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3))}
TIMES = Measurements("layer_times", lambda data: LayerTimes.from_data(data).data())
ROUNDED = Measurements("round_to", int)


def time_layers(
    net: nn.Module, table: ChannelTable, example: Example, *, batch: int = 1, device: torch.device | str = "cpu"
) -> ChannelTable:
    """The channel table with a measured price in milliseconds, so that latency can be a target.

    Each convolution and linear layer is timed alone at five shares of its width on both sides, in fp32, in the layout in
    which the network calls it. What else the network calls (normalisations, activations, additions) was timed within
    forward passes of the whole; beyond the cost of a call it grows with the width of the last tensor of weights before
    it. Times are the least of several passes. They are kept in the process and in the user's cache folder, by network and device.

    Args:
        net: the network that `table` was read from.
        table: its channels.
        example: an input batch, or a tuple of arguments.
        batch: examples of the timed pass.
        device: where the network is to run.

    Returns:
        The same table; ``table.cost(keep).latency`` is in milliseconds of a pass of `batch` examples.

    Raises:
        ConfigError: a batch below 1.
    """
    if batch < 1:
        raise ConfigError(f"layers are timed on at least one example, got a batch of {batch}")
    where = torch.device(device)
    args = _inputs(example, batch, where)
    cuttable = {tensor: sorted(axes) for tensor, axes in table.cut_axes.items()}
    what = (_architecture(net), [tuple(t.shape) for t in tensors_in(args)], sorted(cuttable.items()), SHARES)
    found = TIMES.once(what, lambda: _measure(net, args, cuttable, batch).data(), where)
    return table.timed(LayerTimes.from_data(found))


def preferred_multiple(net: nn.Module, example: Example, *, batch: int = 1, device: torch.device | str = "cpu") -> int:
    """The largest multiple to which widths can be rounded up at no cost in time.

    Every shape of convolution and linear layer of the network is timed at a few widths, each rounded up to multiples of
    1, 2, 4, 8, 16 and 32: where the kernels of a device work in blocks of channels, the next multiple is free. Kept as
    the times of :func:`time_layers` are.

    Args:
        net, example, batch, device: as for :func:`time_layers`.
    """
    where = torch.device(device)
    args = _inputs(example, batch, where)
    what = (_architecture(net), [tuple(t.shape) for t in tensors_in(args)], MULTIPLES)
    return int(ROUNDED.once(what, lambda: _multiple(timed_calls(net, args)[0], where), where))


@dataclass
class _Called:
    """One torch call of a forward pass: its least time, and the tensor of weights that it reads, if any."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensor: str | None
    milliseconds: float

    def get(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def weight(self) -> Tensor:
        found = self.get(1, "weight")
        assert isinstance(found, Tensor)
        return found

    @property
    def is_layer(self) -> bool:
        return self.name in _LAYERS and self.tensor is not None

    @property
    def out_axis(self) -> int:
        """The axis of the weight that counts output channels."""
        return int(self.name.startswith("conv_transpose"))

    def shape(self) -> tuple[Any, ...]:
        """What two calls share whose time is the same."""
        x = self.args[0] if self.args else self.kwargs["input"]
        others = (
            tuple(a for a in self.args[2:] if not isinstance(a, Tensor)),
            {k: v for k, v in self.kwargs.items() if not isinstance(v, Tensor)},
        )
        return self.name, tuple(x.shape), _layout(x), tuple(self.weight.shape), _layout(self.weight), repr(others)

    def at(self, first: int, second: int, copies: int = 1) -> Callable[[], Any]:
        """The same layer with other sizes of the first two axes of its weight, of which it has copies to take in turn."""
        x, weight, bias = self.args[0] if self.args else self.kwargs["input"], self.weight, self.get(2, "bias")
        groups = 1 if self.name == "linear" else int(self.get(6, "groups", 1))
        if groups > 1 and weight.shape[1] == 1:
            groups = max(1, round(groups * first / weight.shape[0]))  # depthwise: as many as there are channels
        if groups > 1:
            first = max(1, first // groups) * groups
        entering = first if self.out_axis else second * groups
        leaving = second * groups if self.out_axis else first
        axis = x.dim() - 1 if self.name == "linear" else x.dim() - self.weight.dim() + 1
        inputs = _like(x, (*x.shape[:axis], entering, *x.shape[axis + 1 :]))
        weights = itertools.cycle([_like(weight, (first, second, *weight.shape[2:])) for _ in range(copies)])
        args, kwargs = list(self.args), dict(self.kwargs)
        replaced: dict[int, tuple[str, Any]] = {0: ("input", inputs)}
        if bias is not None:
            replaced[2] = ("bias", bias.new_zeros(leaving))
        if groups > 1:
            replaced[6] = ("groups", groups)
        for position, (name, value) in replaced.items():
            if len(args) > position:
                args[position] = value
            else:
                kwargs[name] = value
        if len(args) > 1:
            head, tail = args[0], args[2:]
            return lambda: self.function(head, next(weights), *tail, **kwargs)
        return lambda: self.function(*args, **{**kwargs, "weight": next(weights)})


class _Watch(TorchFunctionMode):
    """Times every torch call of forward passes, in order."""

    def __init__(self, names: dict[int, str], clock: Callable[[], float]) -> None:
        super().__init__()
        self.names, self.clock = names, clock
        self.calls: list[_Called] = []
        self.at = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = self.clock()
        out = func(*args, **kwargs)
        taken = 1e3 * (self.clock() - start)
        if self.at < len(self.calls):
            self.calls[self.at].milliseconds = min(taken, self.calls[self.at].milliseconds)
        else:
            name = operation_name(func)
            read = (
                [args[1] if len(args) > 1 else kwargs.get("weight")] if name in _LAYERS else [*args, *kwargs.values()]
            )
            tensor = next((self.names[id(a)] for a in read if id(a) in self.names), None)
            keep = name in _LAYERS
            self.calls.append(_Called(name, func, args if keep else (), kwargs if keep else {}, tensor, taken))
        self.at += 1
        return out


def timed_calls(net: nn.Module, args: tuple[Any, ...]) -> tuple[list[_Called], float]:
    """The calls of a forward pass, and the time of the whole."""
    device = next((t.device for t in tensors_in(args)), torch.device("cpu"))
    scratch = set_mode(copy_net(unwrap(net)), False).to(device)
    names = {id(tensor): name for name, tensor in [*scratch.named_buffers(), *scratch.named_parameters()]}
    watch = _Watch(names, stopwatch(device))
    with torch.no_grad():
        for _ in range(PASSES):
            watch.at = 0
            inputs = own_copy(args)
            with watch:
                scratch(*inputs)
        whole = _milliseconds(lambda: scratch(*own_copy(args)), device, PASSES)
    return watch.calls, whole


def _measure(net: nn.Module, args: tuple[Any, ...], cuttable: dict[str, list[int]], batch: int) -> LayerTimes:
    calls, whole = timed_calls(net, args)
    device = next((t.device for t in tensors_in(args)), torch.device("cpu"))
    shapes = {name: tuple(tensor.shape) for name, tensor in [*net.named_buffers(), *net.named_parameters()]}
    one = torch.zeros(1, device=device)
    call_cost = _milliseconds(lambda: torch.relu(one), device, 50)
    elements = sum(parameter.numel() for parameter in net.parameters())
    rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    others: dict[tuple[str, int], float] = {}
    known: dict[Any, Tensor] = {}
    last: tuple[str, int] | None = None  # the tensor, and its axis, that the width of what follows is read from
    growing = 0.0
    with torch.no_grad():
        for call in calls:
            if call.tensor is not None:
                last = (call.tensor, call.out_axis)
            if call.is_layer:
                assert call.tensor is not None
                shape = shapes[call.tensor]
                first, second = (_sizes(shape[axis], axis in cuttable.get(call.tensor, ())) for axis in (0, 1))
                key = (call.shape(), len(first), len(second))
                if key not in known:
                    # In the network the weights of the other layers push these out of the caches.
                    copies = min(MOST_COPIES, -(-elements // call.weight.numel()))
                    known[key] = torch.tensor(
                        [
                            [_milliseconds(call.at(a, b, copies), device) for b in second.tolist()]
                            for a in first.tolist()
                        ]
                    )
                scaled = known[key] * (call.milliseconds / float(known[key][-1, -1]))
                rows.setdefault(call.tensor, []).append((first, second, scaled))
                growing += call.milliseconds
            elif call.name in _LAYERS:
                last = None  # a computed weight: nobody knows what its width follows
            elif last is not None and last[1] in cuttable.get(last[0], ()):
                others[last] = others.get(last, 0.0) + max(0.0, call.milliseconds - call_cost)
    for (tensor, axis), taken in others.items():
        size, across = shapes[tensor][axis], (*shapes[tensor], 1)[1 - axis]
        sizes, alone = torch.tensor([1.0, float(max(size, 2))]), torch.tensor([float(across)])
        grid = (taken * sizes / size).unsqueeze(1)
        rows.setdefault(tensor, []).append((sizes, alone, grid) if axis == 0 else (alone, sizes, grid.T))
        growing += taken
    return LayerTimes.of(rows, max(0.0, whole - growing), batch)


def _multiple(calls: Sequence[_Called], device: torch.device) -> int:
    totals = dict.fromkeys(MULTIPLES, 0.0)
    shapes: dict[Any, tuple[_Called, int]] = {}
    for call in calls:
        if call.is_layer:
            shapes[call.shape()] = (call, shapes.get(call.shape(), (call, 0))[1] + 1)
    with torch.no_grad():
        for call, count in shapes.values():
            for widths in _odd_widths(*call.weight.shape[:2]):
                known: dict[tuple[int, int], float] = {}
                for multiple in MULTIPLES:
                    rounded = (
                        _up(widths[0], multiple, call.weight.shape[0]),
                        _up(widths[1], multiple, call.weight.shape[1]),
                    )
                    if rounded not in known:
                        known[rounded] = _milliseconds(call.at(*rounded), device)
                    totals[multiple] += count * known[rounded]
    return max(multiple for multiple in MULTIPLES if totals[multiple] <= FREE * min(totals.values()))


def _odd_widths(first: int, second: int) -> Iterator[tuple[int, int]]:
    """Widths on both sides that are multiples of nothing, where there are so many."""
    for share in (0.3, 0.45, 0.6, 0.8):
        yield tuple(n if n < 8 else _odd(share * n, n) for n in (first, second))  # type: ignore[misc]


def _up(width: int, multiple: int, most: int) -> int:
    return min(most, -(-width // multiple) * multiple) if most >= multiple else width


def _sizes(size: int, cuttable: bool) -> Tensor:
    """Sizes at which an axis is timed: between the ends odd ones, since a cut leaves no round numbers of its own."""
    return torch.tensor(sorted({_odd(share * size, size) for share in SHARES} | {size}) if cuttable else [size])


def _odd(width: float, size: int) -> int:
    return min(size, max(1, int(width) | 1))


def _milliseconds(call: Callable[[], Any], device: torch.device, passes: int = 0) -> float:
    """The least time of a few calls: of what else the machine does, it has seen the least."""
    clock, least, spent, count = stopwatch(device), float("inf"), 0.0, 0
    call()
    while count < max(3, passes) or (not passes and spent < SECONDS):
        start = clock()
        call()
        taken = clock() - start
        least, spent, count = min(least, taken), spent + taken, count + 1
    return 1e3 * least


def _inputs(example: Example, batch: int, device: torch.device) -> tuple[Any, ...]:
    args = example if isinstance(example, tuple) else (example,)
    return tuple(a.to(device) if isinstance(a, Tensor) else a for a in small_batch(args, batch))


def _architecture(net: nn.Module) -> Any:
    return [(name, type(m).__name__, m.extra_repr()) for name, m in unwrap(net).named_modules()]


def _layout(x: Tensor) -> torch.memory_format:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=x.dtype, device=x.device).contiguous(memory_format=_layout(x))
