"""Deep copies of networks as users write them: wrapped, hooked, with locks, stored activations and computed weights."""

from __future__ import annotations

import copy
import functools
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyrobnn.errors import NetError

_LOCKS: dict[type, Any] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.Condition: threading.Condition,
    threading.Event: threading.Event,
    threading.local: threading.local,
}


def unwrap(net: nn.Module) -> nn.Module:
    """The network inside `DataParallel`, `DistributedDataParallel`, `AveragedModel` and `torch.compile`.

    Raises:
        NetError: no network, or a TorchScript module or an exported program, which run past everything that reads a
            network.
    """
    if not isinstance(net, nn.Module):
        what = f"the class {net.__name__}" if isinstance(net, type) else type(net).__name__
        raise NetError(
            f"expected a torch.nn.Module, got {what}: pass a network, or build one with pyrobnn.nets.build(name)"
        )
    inner = _inner(net)
    while inner is not net:
        net, inner = inner, _inner(inner)
    if isinstance(net, torch.jit.ScriptModule):
        raise NetError("expected an nn.Module, got a TorchScript module: pass the network that it was made from")
    if isinstance(net, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in net.graph.nodes
    ):
        raise NetError("expected an nn.Module, got an exported program: pass the network that it was exported from")
    return net


def _inner(net: nn.Module) -> nn.Module:
    if isinstance(net, torch.jit.ScriptModule):
        return net
    if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return net.module
    if isinstance(net, torch.optim.swa_utils.AveragedModel):
        return net.module
    compiled = net._modules.get("_orig_mod")  # torch.compile; its class is known to torch._dynamo only
    return compiled if compiled is not None and type(net).__name__ == "OptimizedModule" else net


def copy_net(net: nn.Module) -> nn.Module:
    """A deep copy, unwrapped, that shares nothing with the network.

    As `copy.deepcopy`, but activations that a network keeps and weights that are computed before each pass
    (`weight_norm`, `spectral_norm`, `prune`) are copied without their history, locks are made anew, and functions
    in attributes and hooks that refer to the network refer to its copy.

    Raises:
        NetError: something in the network cannot be copied (it is named), or has no shape yet (lazy layers).

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> net.kept = net(torch.zeros(1, 1, 4, 4))
    >>> copy_net(net).kept.requires_grad
    False
    """
    net = unwrap(net)
    for name, tensor in _own_tensors(net):
        if is_lazy(tensor):
            raise NetError(f"{name!r} has no shape yet: call the network once on a batch, so that lazy layers are made")
    memo: dict[int, Any] = {}
    alive: list[Any] = []  # what the memo names by its id
    functions: list[tuple[types.FunctionType, types.FunctionType]] = []
    for value in _walk(net):
        made = _made_anew(value)
        if made is not None:
            memo[id(value)] = made
            alive.append(value)
            if isinstance(value, types.FunctionType):
                functions.append((value, made))
    for module in net.modules():
        for child in module._modules.values():
            if child is not None and _inner(child) is not child:
                memo[id(child)] = _deepcopy(unwrap(child), memo, net)
    small: nn.Module = _deepcopy(net, memo, net)
    for old, new in functions:
        _fill(old, new, memo, net)
    return small


def _own_tensors(net: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in net.named_modules():
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
            yield (f"{path}.{leaf}" if path else leaf), tensor


def _walk(root: Any) -> Iterator[Any]:
    """Everything that a deep copy would meet, each thing once, and what functions close over."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        stack.extend(_inside(value))


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, type | types.ModuleType | str | bytes | int | float | complex | Tensor | None):
        return ()
    if isinstance(value, types.FunctionType):
        return _held_by(value)
    if isinstance(value, types.MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    found: list[Any] = []
    if isinstance(value, Mapping):
        found.extend(value.values())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        found.extend(value)
    return (*found, *vars(value).values()) if hasattr(value, "__dict__") else found


def _held_by(function: types.FunctionType) -> list[Any]:
    """What a function closes over, and its default arguments."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _made_anew(value: Any) -> Any:
    """The copy of what `copy.deepcopy` refuses or shares; None for what it copies."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.grad_fn is not None else None
    if type(value) in _LOCKS:
        return _LOCKS[type(value)]()
    if isinstance(value, types.FunctionType) and _holds_state(value):
        cells = tuple(types.CellType() for _ in value.__closure__ or ())
        new = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        vars(new).update(vars(value))
        return new
    return None


def _holds_state(value: Any, above: tuple[Any, ...] = ()) -> bool:
    """Whether sharing this would let a copy reach into the original."""
    if isinstance(value, types.FunctionType):
        return value not in above and any(_holds_state(inside, (*above, value)) for inside in _held_by(value))
    return not isinstance(value, type | types.ModuleType | types.BuiltinFunctionType | str | bytes | int | float | None)


def _fill(old: types.FunctionType, new: types.FunctionType, memo: dict[int, Any], net: nn.Module) -> None:
    """Give a function's copy what its original holds: copies where that can be copied."""
    for before, cell in zip(old.__closure__ or (), new.__closure__ or (), strict=True):
        if not _is_empty(before):
            cell.cell_contents = _deepcopy(before.cell_contents, memo, net, share=True)
    if old.__defaults__:
        new.__defaults__ = tuple(_deepcopy(value, memo, net, share=True) for value in old.__defaults__)
    if old.__kwdefaults__:
        new.__kwdefaults__ = {n: _deepcopy(value, memo, net, share=True) for n, value in old.__kwdefaults__.items()}


def _deepcopy(value: Any, memo: dict[int, Any], net: nn.Module, share: bool = False) -> Any:
    """`copy.deepcopy`; what cannot be copied is named, or shared if it has nothing of the network in it."""
    try:
        return copy.deepcopy(value, memo)
    except NetError:
        raise
    except Exception as error:
        modules = set(map(id, net.modules()))
        if share and not any(id(inside) in modules for inside in _walk(value)):
            return value
        raise NetError(f"the network cannot be copied: {_culprit(net, memo)} ({_first_line(error)}); "
                       "remove it before the call, or give the network a __deepcopy__") from None  # fmt: skip


def _culprit(net: nn.Module, memo: dict[int, Any]) -> str:
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            if name == "_modules":
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                where = path or "the network itself"
                if name in ("_parameters", "_buffers") or name.endswith("_hooks"):
                    return f"{name.strip('_').replace('_', ' ')} of {where} ({type(module).__name__})"
                return f"attribute {name!r} ({type(value).__name__}) of {where} ({type(module).__name__})"
    return f"a {type(net).__name__}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100]}" if lines else type(error).__name__
