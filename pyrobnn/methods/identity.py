"""What a run is, in plain values: a checkpoint must not go on as another run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from pyrobnn.data import Data
from pyrobnn.likelihoods import Likelihood
from pyrobnn.methods.base import Method, Request

PROSE = ("title", "source", "cut_where")  # of a method; may be reworded
ANYWHERE = ("device",)  # of a request; a run may go on elsewhere


def identity(
    request: Request, method: Method, data: Data, net: nn.Module, *, trained: bool, likelihood: Likelihood | None
) -> dict[str, Any]:
    """All that must be equal for a resume, of plain values that a checkpoint can hold."""
    return {
        "request": _fields(request, ANYWHERE),
        "method": _fields(method, PROSE),
        "data": data.fingerprint,
        "augment": repr(data.train.augment),
        "normalisation": [list(data.mean), list(data.std)],
        "net": [[name, list(value.shape)] for name, value in net.state_dict().items()],
        "given_weights": _fingerprint(net) if trained else None,
        "likelihood": plain(likelihood),
    }


def difference(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Where two identities differ: the name of the first such entry and its two values; None if nowhere.

    An entry or a field that one of them does not know is not compared, so that checkpoints outlive additions.
    """
    for key in (key for key in ours if key in saved):
        one, other = saved[key], ours[key]
        if not (isinstance(one, dict) and isinstance(other, dict)):
            if one != other:
                return _inside(key, one, other)
            continue
        for field in other:
            if field in one and one[field] != other[field]:
                return _inside(field, one[field], other[field])
    return None


def _inside(name: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """The entry that differs, of a mapping; the first ones that differ, of lists of one length."""
    if isinstance(one, dict) and isinstance(other, dict):
        key = next(key for key in (*other, *one) if key not in one or key not in other or one[key] != other[key])
        return _inside(f"{name}.{key}", one.get(key), other.get(key))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return next((name, a, b) for a, b in zip(one, other, strict=True) if a != b)
    return name, one, other


def plain(value: Any) -> Any:
    """A value as numbers, strings, lists and dictionaries.

    A function is its name, with the settings that were closed over, an object its class with its attributes.
    Two functions that differ in their code alone look the same.

    >>> plain({"rounds": np.int64(3), "schedule": partial(max, 2)})
    {'rounds': 3, 'schedule': ['max', [2], {}]}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, partial):
        return [_name(value.func), plain(value.args), plain(value.keywords)]
    if callable(value) and hasattr(value, "__qualname__"):
        return [_name(value), *_settings(value)]
    kept = {key: entry for key, entry in getattr(value, "__dict__", {}).items() if _simple(entry)}
    return [type(value).__qualname__, plain(kept)]


def _settings(function: Callable[..., Any]) -> list[Any]:
    closed = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return [plain(value) for value in (*closed, *(getattr(function, "__defaults__", None) or ())) if _simple(value)]


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple | Mapping | np.generic)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _fields(value: Any, without: tuple[str, ...]) -> dict[str, Any]:
    return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__ if name not in without}


def _fingerprint(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
