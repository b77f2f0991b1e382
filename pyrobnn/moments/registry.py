"""The registry of moment rules, and the dispatch of operations on random tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pyrobnn.errors import NetError
from pyrobnn.moments.tensor import Moments, is_weight, parts, plain

Kind = Literal["linear", "consumer", "activation"]


@dataclass(frozen=True)
class Rule:
    """How one function treats moments.

    ``kind`` says what happens when every :class:`Moments` argument is a weight: ``"linear"`` rules
    (sums, products with constants, movements) return a weight again; ``"consumer"`` rules
    (convolutions, normalisations) know what to do; ``"activation"`` rules see the weight's draw.
    """

    apply: Callable[..., Any]
    kind: Kind
    inplace: bool


RULES: dict[Any, Rule] = {}


def ops(*names: str) -> tuple[Callable[..., Any], ...]:
    """Every public form of an operation: ``torch.f``, ``F.f``, ``Tensor.f`` and in-place ``f_``."""
    found: list[Callable[..., Any]] = []
    for name in names:
        for form in (name, name + "_"):
            for home in (torch, F, torch.Tensor, torch._C._nn):
                func = getattr(home, form, None)
                if callable(func) and func not in found:
                    found.append(func)
    if not found:
        raise AssertionError(f"no operation is called {names}")
    return tuple(found)


def rule(
    *functions: Callable[..., Any], kind: Kind = "activation"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated function as the rule of ``functions``.

    The rule is called with the arguments of the operation (``out=`` and ``inplace=`` taken away, as
    the dispatcher serves both) and returns :class:`Moments`, a plain tensor, a sequence of those, or
    ``NotImplemented`` if it cannot treat these arguments.
    """

    def enter(apply: Callable[..., Any]) -> Callable[..., Any]:
        for func in functions:
            name = func.__name__
            dunder = name.startswith("__")
            inplace = (
                (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
                if dunder
                else name.endswith("_")
            )
            RULES[func] = Rule(apply, kind, inplace)
        return apply

    return enter


def getter(name: str) -> Any:
    """What ``__torch_function__`` receives when the property ``name`` of a tensor is read."""
    return getattr(torch.Tensor, name).__get__


def _metadata() -> Iterator[Any]:
    methods = "dim size stride numel nelement ndimension is_floating_point is_complex is_contiguous get_device"
    for name in (*methods.split(), "element_size", "is_signed", "__len__"):
        yield getattr(torch.Tensor, name)
    properties = "shape dtype device ndim layout is_cuda is_cpu is_mps is_sparse is_quantized is_mkldnn is_meta"
    for name in (*properties.split(), "is_nested", "is_xpu", "itemsize", "names"):
        if hasattr(torch.Tensor, name):
            yield getter(name)
    yield from (torch.is_floating_point, torch.is_complex, torch.numel)


METADATA: frozenset[Any] = frozenset(_metadata())


def dispatch(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Serve one operation that has a :class:`Moments` among its arguments."""
    if func in METADATA:
        return func(args[0]._loc, *args[1:], **kwargs)
    entry = RULES.get(func)
    if entry is None:
        return without_rule(func, args, kwargs)
    found = [x for x in _flat(args, kwargs) if isinstance(x, Moments)]
    for x in found:
        if x._seen != x._store.version:
            raise NetError(
                f"moments: a view of this tensor was changed in place before {_where(func)}; "
                f"make that operation out-of-place."
            )
    target = kwargs.pop("out", None)
    inplace = bool(kwargs.pop("inplace", False)) or entry.inplace
    weights_only = all(x._replay is not None for x in found)
    if weights_only and (entry.kind == "activation" or (inplace and target is None)):
        result = NotImplemented
    else:
        result = entry.apply(*args, **kwargs)
    if result is NotImplemented:
        if target is not None:
            kwargs["out"] = target
        return without_rule(func, args, kwargs, inplace=inplace)
    if weights_only and entry.kind == "linear" and target is None:
        _derive(result, entry.apply, args, kwargs, found)
    if target is not None:
        return _write(target, result, func)
    if inplace:
        return _write(args[0], result, func)
    return result


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for x in (*args, *kwargs.values()):
        if isinstance(x, (tuple, list)):
            yield from x
        else:
            yield x


def _derive(
    result: Any,
    apply: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: list[Moments],
) -> None:
    """Mark what was computed from weights as a weight: its draw is the same function of their draws."""
    sources = tuple(dict.fromkeys(s for x in found for s in x.sources))
    reading = found[0].reading
    cache: list[Any] = []

    def replay(position: int | None) -> Tensor:
        if not cache:
            drawn_args, drawn_kwargs = tree_map(plain, (args, kwargs))
            cache.append(apply(*drawn_args, **drawn_kwargs))
        drawn: Tensor = cache[0] if position is None else cache[0][position]
        return drawn

    many = isinstance(result, (tuple, list))
    for i, x in enumerate(result if many else (result,)):
        if isinstance(x, Moments) and not any(x is y for y in found):
            x.reading, x.sources = reading, sources
            x._replay = lambda i=i: replay(i if many else None)


def _write(target: Any, result: Any, func: Callable[..., Any]) -> Any:
    """Serve ``out=`` and in-place forms: the target object takes the result's moments."""
    if not isinstance(target, Moments):
        if isinstance(result, Moments):
            raise NetError(
                f"moments: {_where(func)} writes a random result into a plain tensor; make that operation out-of-place (x = x + y)."
            )
        return target.copy_(result)
    if target._loc.shape != (result.shape if isinstance(result, Tensor) else ()):
        raise NetError(f"moments: {_where(func)} writes shape {tuple(result.shape)} into {tuple(target._loc.shape)}.")
    loc, variance = parts(result)
    target._loc = loc
    target._held = torch.zeros_like(loc, dtype=torch.float32) if variance is None else variance
    target._replay, target._sample, target.sources = None, None, ()
    target._store.version += 1
    target._seen = target._store.version
    return target


def without_rule(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], inplace: bool = False) -> Any:
    """Run ``func`` on the draws of weights; refuse activations."""
    found = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Moments)]
    if any(x._replay is None for x in found):
        raise NetError(
            f"moments: no rule carries a mean and variance through {_where(func)}; use the 'weight' or 'local' "
            f"estimator for this net, or add a rule with pyrobnn.moments.rule."
        )
    name = getattr(func, "__name__", "")
    if args and is_weight(args[0]) and (inplace or (name.endswith("_") and not name.startswith("__"))):
        raise NetError(f"moments: {_where(func)} would change a random weight in place; make it out-of-place.")
    args, kwargs = tree_map(plain, (args, kwargs))
    return func(*args, **kwargs)


def _where(func: Callable[..., Any]) -> str:
    """Name the operation, and the module whose ``forward`` called it."""
    owner = getattr(func, "__objclass__", None) or getattr(func, "__module__", None) or "torch"
    owner = getattr(owner, "__name__", owner)
    name = str(getattr(func, "__qualname__", None) or getattr(func, "__name__", repr(func)))
    if name == "__get__":  # a property of Tensor
        name = str(getattr(getattr(func, "__self__", None), "__name__", name))
    operation = name if "." in name else f"{owner}.{name}"
    frame: FrameType | None = sys._getframe(1)
    inner: nn.Module | None = None
    root: nn.Module | None = None
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            inner = module if inner is None else inner
            root = module
        frame = frame.f_back
    if inner is None or root is None:
        return f"operation {operation!r}"
    path = next((path for path, module in root.named_modules() if module is inner), "")
    return f"operation {operation!r} in module {path or 'the net itself'!r} ({type(inner).__name__})"


def refuse(message: str) -> NoReturn:
    """Raise :class:`NetError` for an argument that a rule cannot treat."""
    raise NetError(f"moments: {message}")
