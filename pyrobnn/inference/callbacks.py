"""Callbacks: actions beside the gradient steps of a fit.

Closed-form updates, histories, dual ascent, cut-as-you-go, schedules of a temperature: each is an object with some
of the hooks of :class:`Callback`. A hook sees a read-only :class:`FitState` and returns a :class:`FitUpdate` with
what is to change; the loop makes the change, tensors in place, so that a captured step sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pyrobnn.channels import PruningPlan
from pyrobnn.errors import CheckpointError, ConfigError
from pyrobnn.inference.schedules import schedule
from pyrobnn.inference.terms import Term
from pyrobnn.model import BayesianModel


@dataclass(frozen=True)
class FitState:
    """A running fit, to be read and not written to.

    Attributes:
        model, guide: the current pair.
        epoch, step: epochs and optimiser steps done.
        steps_per_epoch: steps of an epoch.
        progress: share of the fit's steps that are done, in [0, 1].
        rates: learning rates of the last step, one per parameter group.
        kl_weight: factor on the whole KL in the last step.
        kl_weights: `{site: factor}`, the factors on the KL of single sites.
        history: one row per epoch done.
    """

    model: BayesianModel
    guide: Any
    epoch: int = 0
    step: int = 0
    steps_per_epoch: int = 1
    progress: float = 0.0
    rates: tuple[float, ...] = ()
    kl_weight: float = 1.0
    kl_weights: Mapping[str, float | Tensor] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class FitUpdate:
    """What a callback asks the loop to change.

    Attributes:
        plan: a cut, in the coordinates of the current network.
        kl_weights: `{site: factor}`, a number or a tensor that broadcasts against the site's KL; others stay.
        tensors: `{name: value}`, copied in place. Names start with `guide.`, `net.` or `prior.` and go on as in
            `named_parameters()` and `named_buffers()`, or name an attribute that holds a number or a tensor
            (`prior.tau`).
        settings: `{name: value}`, attributes of guide or prior that are no numbers and change what a step computes
            (`guide.point`); a captured step is captured again.
        terms: added to the loss from now on.
        metrics: figures for the epoch's row of the history.
    """

    plan: PruningPlan | None = None
    kl_weights: Mapping[str, float | Tensor] = field(default_factory=dict)
    tensors: Mapping[str, Tensor | float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    terms: tuple[Term, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Callback:
    """Base of all callbacks; every hook is optional and may return nothing.

    What a callback remembers is in the checkpoint, under the name of its class.
    """

    def on_start(self, state: FitState) -> FitUpdate | None:
        """Before the first step (also after a resume)."""
        return None

    def on_batch_end(self, state: FitState) -> FitUpdate | None:
        """After each optimiser step."""
        return None

    def on_epoch_end(self, state: FitState) -> FitUpdate | PruningPlan | None:
        """After each epoch; a plan alone stands for an update with that plan."""
        return None

    def on_cut(self, state: FitState, plan: PruningPlan) -> FitUpdate | None:
        """After model and guide were cut to `plan`."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs (tensors, numbers, strings, lists, dicts), always under the same keys."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""


Event = Callback  # the name in earlier versions


def named(callbacks: Iterable[Callback]) -> dict[str, Callback]:
    """Callbacks by the name of their class; a second one of a class is `<name>.2`, and so on."""
    found: dict[str, Callback] = {}
    for callback in callbacks:
        name = base = type(callback).__name__
        number = 1
        while name in found:
            number += 1
            name = f"{base}.{number}"
        found[name] = callback
    return found


def states(callbacks: Iterable[Callback]) -> dict[str, dict[str, Any]]:
    """What all of them remember, by name."""
    return {name: callback.state_dict() for name, callback in named(callbacks).items()}


def load_states(callbacks: Iterable[Callback], saved: Mapping[str, Any]) -> None:
    """Give each callback the state that was saved under its name.

    Raises:
        CheckpointError: callbacks without a state, states without a callback, or states with other keys.
    """
    mine = named(callbacks)
    if not isinstance(saved, Mapping):
        raise CheckpointError("the checkpoint keeps callbacks by number, as an earlier version did: start afresh")
    if set(mine) != set(saved):
        there = ", ".join(saved) or "none"
        here = ", ".join(mine) or "none"
        raise CheckpointError(
            f"the checkpoint holds the state of the callbacks {there}, this fit has {here}: use the same or start afresh"
        )
    for name, callback in mine.items():
        expected, got = callback.state_dict().keys(), saved[name].keys()
        if expected != got:
            raise CheckpointError(
                f"the state of the callback {name} has the keys {', '.join(got) or 'none'}, expected "
                f"{', '.join(expected) or 'none'}: it was written by another version, start afresh"
            )
        callback.load_state_dict(saved[name])


def read_only(rows: Iterable[dict[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Rows of a history that cannot be written to."""
    return tuple(MappingProxyType(row) for row in rows)


def assign(
    owners: Mapping[str, Any], name: str, value: Any, *, number: bool = True, device: torch.device | None = None
) -> bool:
    """Set what `<owner>.<attribute>` names: a tensor in place, a number as it is, or another setting (not `number`).

    On a CUDA `device` a number becomes a tensor there, which a captured step can see change.

    Returns:
        Whether the attribute now holds what a captured step does not know: another object, or another setting.

    Raises:
        ConfigError: no owner or attribute of that name, or a tensor of another shape.
    """
    head, _, rest = name.partition(".")
    owner = owners.get(head)
    if not rest or owner is None:
        raise ConfigError(f"an update names {name!r}: expected one of {', '.join(owners)}, a dot and the tensor's name")
    *path, leaf = rest.split(".")
    try:
        for part in path:
            owner = getattr(owner, part)
        current = getattr(owner, leaf)
    except AttributeError as error:
        raise ConfigError(f"an update names {name!r}, and there is no such tensor or attribute") from error
    if not number:
        setattr(owner, leaf, value)
        return bool(current != value)
    if isinstance(current, Tensor):
        if isinstance(value, Tensor) and value.shape != current.shape:
            raise ConfigError(
                f"an update of {name!r} has shape {tuple(value.shape)}, expected {tuple(current.shape)}: cuts go by plan"
            )
        current.data.copy_(value) if isinstance(value, Tensor) else current.data.fill_(value)
        return False
    if not isinstance(current, int | float) or isinstance(current, bool):
        raise ConfigError(f"an update names {name!r}, which is neither a tensor nor a number: give it as a setting")
    captured = device is not None and device.type == "cuda"
    setattr(owner, leaf, torch.as_tensor(value, device=device) if captured else value)
    return captured


class Temperature(Callback):
    """Moves `guide.temperature` along a schedule of progress."""

    def __init__(self, values: Any) -> None:
        self.schedule = schedule(values)

    def on_start(self, state: FitState) -> FitUpdate:
        return FitUpdate(tensors={"guide.temperature": self.schedule(state.progress)})

    def on_batch_end(self, state: FitState) -> FitUpdate:
        return self.on_start(state)
