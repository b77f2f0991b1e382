"""The identity of a run as plain values: a checkpoint is resumed by the same run only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn

from pyrobnn.data import Data
from pyrobnn.likelihoods import Categorical, Likelihood
from pyrobnn.pipeline.config import CompressionConfig
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import Recipe
from pyrobnn.tasks import Task


def identity(
    config: CompressionConfig,
    method: Method,
    recipe: Recipe,
    data: Data,
    net: nn.Module,
    *,
    trained: bool,
    task: Task,
) -> dict[str, Any]:
    """All that must be equal for a resume, of plain values that a checkpoint can hold."""
    return {
        "config": config.identity(),
        "method": {"name": method.name, "rule": method.rule, "threshold": method.threshold, **method.settings},
        "recipe": recipe.identity(),
        "data": data.fingerprint,
        "augment": repr(data.train.augment),
        "normalisation": [list(data.mean), list(data.std)],
        "net": [[name, list(value.shape)] for name, value in net.state_dict().items()],
        "given_weights": _fingerprint(net) if trained else None,
        "likelihood": None if task.likelihood == Categorical() else _named(task.likelihood),
        "metric": task.metric.name,
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


def _named(likelihood: Likelihood) -> str:
    """A dataclass by its fields, anything else by its name."""
    if is_dataclass(likelihood):
        return repr(likelihood)
    return str(getattr(likelihood, "__qualname__", type(likelihood).__qualname__))


def _fingerprint(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
