"""Torch operations as they are called: their plain names, their arguments, and the tensors inside what they return."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One torch operation: its name, its arguments and what it returned."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors inside nested tuples, lists, dicts and objects with attributes or slots."""
    if isinstance(value, Tensor):
        yield value
    else:
        yield from _inside(value, set())


def _inside(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, _PLAIN) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _inside(item, seen)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for item in value:
            yield from _inside(item, seen)
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if name != "__dict__")
    for name in (*getattr(value, "__dict__", ()), *slots):
        yield from _inside(getattr(value, name, None), seen)


# What holds no tensors of an output, or too many.
_PLAIN: tuple[type, ...] = (
    *(str, bytes, int, float, complex, type(None), slice, type, ModuleType, FunctionType, MethodType, nn.Module),
    *(torch.dtype, torch.device, torch.Size, torch.Generator),
)


def operation_name(function: Any) -> str:
    """A plain name for a torch function: ``Tensor.__iadd__``, ``add_`` and ``torch.add`` are all ``add``."""
    name = str(getattr(function, "__name__", function))
    if name in ("__get__", "__set__"):
        owner = str(getattr(getattr(function, "__self__", None), "__name__", name))
        return owner if name == "__get__" else f"set {owner}"
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        if name.startswith(("i", "r")) and name[1:] in _ARITHMETIC:
            name = name[1:]
        return name
    return name.strip("_")


_ARITHMETIC = {"add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "div", "and", "or", "xor"}
