"""Settings as plain values, to be stored in a checkpoint and compared with those of another run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import numpy as np


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
    kept = {key: entry for key, entry in getattr(value, "__dict__", {}).items() if _simple(entry) or is_dataclass(entry)}
    return [type(value).__qualname__, plain(kept)]


def _settings(function: Callable[..., Any]) -> list[Any]:
    closed = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return [plain(value) for value in (*closed, *(getattr(function, "__defaults__", None) or ())) if _simple(value)]


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple | Mapping | np.generic)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
