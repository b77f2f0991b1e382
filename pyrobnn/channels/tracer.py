"""The label tracer: runs a network once and follows its channels through every torch operation.

One forward pass under a ``TorchFunctionMode``: every torch operation runs on the numbers as usual and on the
labels beside them. Movement runs the real operation on the labels; arithmetic unites labels position by
position; convolutions and linear layers record what they read and make new labels; whatever is not known locks
the labels it touches, with the operation and the module as the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyrobnn.channels.calls import Call, operation_name, tensors_in
from pyrobnn.channels.labels import Ledger, shrunk, varying
from pyrobnn.channels.origins import Origin, follow, of_parameter, origins

_FIRST = ("input", "self", "tensors")  # a first argument that is given by name
_LABELS = "_channel_labels"
_WHY = "_channel_why"
_UNIFORM = "_channel_uniform"

Rule = Callable[["Tracer", "Call"], None]
RULES: dict[Any, Rule] = {}  # by name; operations that users register, by themselves


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the operations of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


class Tracer(TorchFunctionMode):
    """The mode that carries labels; create it once and enter it around each forward pass.

    Args:
        net: a scratch copy of the network. Hooks are placed on it.

    Attributes:
        axis_labels: labels per ``(tensor, axis)``.
        roles: roles seen per ``(tensor, axis)``.
        producers: label -> (order, tensor, position) of the row that makes it.
        consumed: all labels read by convolutions, linear layers and channel maps.
        map_inputs: input labels per ``ChannelMap`` (by the name of its index buffer).
        uses: ``(tensor, elements computed per weight over the whole batch)`` of the pass, if `count_uses`.
        fixed_macs: multiply-accumulates of the whole batch in layers whose weight is computed, which cannot be cut.
        computed: why not, by the name of these layers.
        sizes: ``(module, attribute, position in it or None, labels)`` of numbers that count channels.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.ledger = Ledger()
        self.modules = dict(net.named_modules())
        self.names: dict[int, str] = {}
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            self.names.setdefault(id(tensor), name)
        self.tensors = {**dict(net.named_buffers()), **dict(net.named_parameters())}
        self.axis_labels: dict[tuple[str, int], Tensor] = {}
        self.roles: dict[tuple[str, int], set[str]] = {}
        self.producers: dict[int, tuple[int, str, int]] = {}
        self.consumed: list[Tensor] = []
        self.map_inputs: dict[str, Tensor] = {}
        self.uses: list[tuple[str, int]] = []
        self.fixed_macs = 0
        self.computed: dict[str, str] = {}
        self.sizes: dict[tuple[str, str, int | None], Tensor] = {}
        self.count_uses = True
        self.split_views = 0
        self._order = 0
        self._stack: list[str] = []
        for name, module in net.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            module.register_forward_pre_hook(self._entering(name))
            module.register_forward_hook(self._leaving, always_call=True)

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(name)

        return enter

    def _leaving(self, module: nn.Module, args: Any, out: Any) -> None:
        self._stack.pop()

    @property
    def running(self) -> str:
        """The module that is running, innermost."""
        return self._stack[-1] if self._stack else ""

    def leave(self) -> None:
        """Forget which modules were running, after a forward pass that failed."""
        self._stack.clear()

    # Labels of tensors

    def labels(self, tensor: Any) -> Tensor | None:
        """The label tensor of an activation or of a per-channel parameter; None for anything of fixed size."""
        if not isinstance(tensor, Tensor):
            return None
        name = self.names.get(id(tensor))
        if name is None:
            found: Tensor | None = getattr(tensor, _LABELS, None)
            return found
        long = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        if len(long) != 1 or not (tensor.is_floating_point() or tensor.is_complex()):
            return None
        axis = long[0]
        key = (name, axis)
        if key not in self.axis_labels:
            self.attach(name, axis, self.ledger.fresh(tensor.shape[axis]), "through")
        return _along(self.axis_labels[key], axis, tensor.shape)

    def set(self, tensor: Tensor, labels: Tensor | None, why: str | None = None) -> None:
        """Give an activation its labels, or none and the reason."""
        if labels is not None and labels.shape != tensor.shape:
            labels = labels.expand(tensor.shape)
        setattr(tensor, _LABELS, labels)
        if labels is None:
            setattr(tensor, _WHY, why or self.here("a result of fixed size"))

    def set_uniform(self, tensor: Tensor) -> None:
        """Say that a tensor is a constant whose size the forward pass chose: the trial shows whether it follows."""
        setattr(tensor, _UNIFORM, True)

    def is_uniform(self, tensor: Any) -> bool:
        """Whether a tensor is zeros, ones, noise or the like."""
        return bool(getattr(tensor, _UNIFORM, False))

    def origins(self, tensor: Any) -> list[Origin]:
        """The parameters that a tensor is, or is made from number by number."""
        if not isinstance(tensor, Tensor):
            return []
        name = self.names.get(id(tensor))
        return origins(tensor) if name is None else [of_parameter(name, tensor)]

    def weights(self, tensor: Tensor) -> list[str]:
        """The names of the parameters that a weight is, cast or masked as it may be; none if it is computed."""
        name = self.names.get(id(tensor))
        if name is not None:
            return [name]
        found = [origin for origin in self.origins(tensor) if origin.is_whole(tensor)]
        return [origin.name for origin in found]

    def size_attribute(self, value: Any) -> tuple[str, str] | None:
        """The attribute of a running module that holds this size or these sizes, innermost module first."""
        for path in reversed(self._stack):
            held = vars(self.modules[path])
            for name, item in held.items():
                if item is value and not isinstance(value, int):
                    return path, name
            for name, item in held.items():
                if type(item) in (int, list, tuple, torch.Size) and not isinstance(value, bool):
                    same = (
                        item == value
                        if isinstance(value, int)
                        else not isinstance(item, int) and list(item) == list(value)
                    )
                    if same and not name.startswith("_"):
                        return path, name
        return None

    def note_size(self, where: tuple[str, str], position: int | None, labels: Tensor) -> None:
        """Say that this number counts these channels."""
        key = (*where, position)
        if key in self.sizes:
            self.ledger.union(self.sizes[key], labels)
        else:
            self.sizes[key] = labels

    def here(self, what: str) -> str:
        """`what`, with the module that is running."""
        name = self._stack[-1] if self._stack else ""
        module = self.modules.get(name, self.net)
        return f"{what} in {name or 'the network itself'} ({type(module).__name__})"

    def why(self, tensor: Any) -> str:
        """Why a tensor has no labels."""
        return str(getattr(tensor, _WHY, self.here("a constant")))

    def attach(self, name: str, axis: int, labels: Tensor, role: str) -> Tensor:
        """Say that position i of this axis carries ``labels[i]``; a second use ties both."""
        key = (name, axis)
        if key in self.axis_labels:
            self.ledger.union(self.axis_labels[key], labels)
        else:
            self.axis_labels[key] = labels
        self.roles.setdefault(key, set()).add(role)
        return self.axis_labels[key]

    def produce(self, name: str, axis: int) -> Tensor:
        """Labels of the rows that a producer makes; the same rows give the same labels."""
        key = (name, axis)
        if key in self.axis_labels and "out" in self.roles[key]:
            return self.axis_labels[key]
        rows = self.ledger.fresh(self.tensors[name].shape[axis])
        self.attach(name, axis, rows, "out")
        for position, label in enumerate(rows.tolist()):
            self.producers[label] = (self._order, name, position)
        self._order += 1
        return rows

    def consume(self, name: str, axis: int, labels: Tensor) -> None:
        """Say that this axis reads these labels."""
        self.consumed.append(labels)
        self.attach(name, axis, labels, "in")

    def vector(self, tensor: Tensor, axis: int) -> Tensor:
        """Labels along one axis; if they change along another one too, or are missing, locked ones."""
        axis %= tensor.dim()
        labels = self.labels(tensor)
        size = tensor.shape[axis]
        if labels is None:
            fixed = self.ledger.fresh(size)
            self.ledger.lock(fixed, self.why(tensor))
            return fixed
        small = self.small(labels)
        if any(other != axis for other in varying(small)):
            reason = self.here("channels are not on the axis that is read")
            self.ledger.lock(small, reason)
            fixed = self.ledger.fresh(size)
            self.ledger.lock(fixed, reason)
            return fixed
        return small.reshape(-1).expand(size)

    def small(self, labels: Tensor) -> Tensor:
        """:func:`shrunk`, looking at classes where labels alone change along several axes."""
        small = shrunk(labels)
        return shrunk(self.ledger.roots(small)) if len(varying(small)) > 1 else small

    def lock(self, values: Any, reason: str) -> None:
        """Lock every label among these arguments."""
        for tensor in tensors_in(values):
            labels = self.labels(tensor)
            if labels is not None:
                self.ledger.lock(shrunk(labels), reason)

    def refuse(self, call: Call, what: str) -> None:
        """Lock all that goes in; nothing that comes out is cut."""
        reason = self.here(f"{call.name} {what}")
        self.lock((call.args, call.kwargs), reason)
        for out in tensors_in(call.out):
            self.set(out, None, reason)

    def finish(self, output: Any) -> None:
        """Lock what reaches the network's output."""
        self.lock(output, "reaches the network's output")

    # The mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = operation_name(func)
        if not args and kwargs and (first := next((k for k in _FIRST if k in kwargs), None)):
            args, kwargs = (kwargs[first],), {key: value for key, value in kwargs.items() if key != first}
        call = Call(name, func, args, kwargs, out)
        if name in ("setitem", "set data") or kwargs.get("out") is not None:
            self.refuse(call, "writes into a tensor")
            return out
        if not any(True for _ in tensors_in(out)):
            return out
        known = RULES.get(func) or RULES.get(name)
        if known is not None:
            try:
                known(self, call)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                self.refuse(call, f"could not be followed ({type(error).__name__})")
        elif any(self.labels(tensor) is not None for tensor in tensors_in((args, kwargs))):
            self.refuse(call, "is not known to keep channels apart")
        follow(name, func, args, kwargs, out, self.origins)
        return out


def _along(labels: Tensor, axis: int, shape: torch.Size) -> Tensor:
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return labels.reshape(view).expand(shape)


def source_of(call: Call) -> Any:
    """The tensor that an operation is about."""
    return call.args[0] if call.args else call.kwargs.get("input", call.kwargs.get("self"))


def no_labels(tracer: Tracer, call: Call) -> None:
    """What comes from tensors of fixed size has a fixed size, for the same reason."""
    parts = list(tensors_in((call.args, call.kwargs)))
    reasons = [tracer.why(tensor) for tensor in parts if hasattr(tensor, _WHY)]
    uniform = bool(parts) and all(tracer.is_uniform(tensor) for tensor in parts)
    for out in tensors_in(call.out):
        tracer.set(out, None, reasons[0] if reasons else tracer.here("a constant"))
        if uniform:
            tracer.set_uniform(out)
