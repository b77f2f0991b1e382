"""`State`: what one stage of a run hands to the next, stored as tensors and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan, resize_to
from pyrobnn.summary.state import from_state, to_state
from pyrobnn.summary.types import Posterior

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class VariationalState:
    """Where the last fit of a posterior left it; prior and guide are made anew from it.

    Attributes:
        guide: tensors of the guide; None where the next fit starts a new one.
        net: tensors of the model's network, the random ones at their initial values; None with `guide`.
        prior: what the prior has read from the first network, `{}` for nothing.
        callbacks: what the callbacks remember, by name.
        only: the group that latents were placed on, where it was one alone; its noise is over with the cut.
        start: what the guide knows of its start, `{}` for a guide that keeps nothing of it.
    """

    guide: Tensors | None
    net: Tensors | None
    prior: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Mapping[str, Any] = field(default_factory=dict)
    only: str | None = None
    start: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """All that a run knows after a stage. No stage changes one; networks in it are not to be trained or cut in place.

    Attributes:
        dense: the network it all started from.
        net: the current plain network.
        plan: all cuts so far, in the coordinates of `dense`.
        base: validation score of `dense` (accuracy, or see `Context.score`); None without validation images.
        base_error: its standard error, in the units of `max_drop`.
        variational: of the last fit; None before it.
        latest: the posterior that the last fit left, in the coordinates of `net` before the cut that follows.
        records: the channels' statistic after each epoch of that fit but the last, likewise.
        posterior: all rounds merged: every channel at its last decision, in the coordinates of `dense`.
        rounds: one entry per cut, for the report.
        spent: passes over the training data by phase.
        recovered: validation score after the last inference.
        tuned: validation score after the last tuning.
        extras: tensors or plain values that a method adds.
        accepted: stage to go back to when a later network is lost: the last whose accuracy could still come back.
        held: the last stage that held the allowed drop before any tuning.
        trail: the stages accepted since `held`, in order: networks whose accuracy could still come back.
        best: stage of the smallest network that held the drop after tuning.
        missed: share of the MACs that the largest network left that did not; 0 before there was one.
        stopped: the rounds are over.
        seconds: wall-clock time of the run up to here.
    """

    dense: nn.Module
    net: nn.Module
    plan: PruningPlan
    base: float | None = None
    base_error: float = 0.0
    variational: VariationalState | None = None
    latest: Posterior | None = None
    records: tuple[Tensors, ...] = ()
    posterior: Posterior = field(default_factory=lambda: Posterior({}, {}))
    rounds: tuple[dict[str, Any], ...] = ()
    spent: Mapping[str, float] = field(default_factory=lambda: {"dense": 0, "infer": 0, "tune": 0})
    recovered: float | None = None
    tuned: float | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    accepted: str | None = None
    held: str | None = None
    trail: tuple[str, ...] = ()
    best: str | None = None
    missed: float = 0.0
    stopped: bool = False
    seconds: float = 0.0

    def spend(self, phase: str, epochs: float) -> Mapping[str, float]:
        """`spent` with so many epochs more."""
        return {**self.spent, phase: self.spent.get(phase, 0) + epochs}

    def with_extras(self, **extras: Any) -> State:
        """With more, or other, extras."""
        return replace(self, extras={**self.extras, **extras})


PLAIN = (
    "base",
    "base_error",
    "spent",
    "recovered",
    "tuned",
    "accepted",
    "held",
    "trail",
    "best",
    "missed",
    "stopped",
    "seconds",
)


def to_data(state: State) -> dict[str, Any]:
    """A state as nested dicts and lists of tensors and plain values."""
    variational = state.variational
    return {
        **{name: getattr(state, name) for name in PLAIN},
        "spent": dict(state.spent),
        "dense": tensors_of(state.dense),
        "net": tensors_of(state.net),
        "plan": state.plan.to_json(),
        "variational": None if variational is None else dict(vars(variational)),
        "latest": None if state.latest is None else to_state(state.latest),
        "records": list(state.records),
        "posterior": to_state(state.posterior),
        "rounds": list(state.rounds),
        "extras": dict(state.extras),
    }


def from_data(data: Mapping[str, Any], template: nn.Module, device: torch.device) -> State:
    """What :func:`to_data` made; the networks are cut and filled copies of `template`, on a device."""
    variational = data["variational"]
    return State(
        **{name: data[name] for name in PLAIN},
        dense=resize_to(template, data["dense"]).to(device),
        net=resize_to(template, data["net"]).to(device),
        plan=PruningPlan.from_json(data["plan"]),
        variational=None if variational is None else VariationalState(**variational),
        latest=None if data["latest"] is None else from_state(data["latest"]),
        records=tuple(data["records"]),
        posterior=from_state(data["posterior"]),
        rounds=tuple(data["rounds"]),
        extras=data["extras"],
    )


def tensors_of(net: nn.Module) -> Tensors:
    """A network's tensors, detached, on the CPU and contiguous; not copied where they already are."""
    return {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Detached CPU copies."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def settled(net: nn.Module, template: nn.Module) -> nn.Module:
    """A network, in place, as one that is rebuilt from the dense network would be: modes, layout, order of parameters.

    So a run that goes on and one that is resumed start their next fit from the same.
    """
    like = dict(template.named_modules())
    for path, module in net.named_modules():
        other = like[path]
        module.training = other.training
        module._parameters = {name: module._parameters[name] for name in other._parameters}
        for name, parameter in module._parameters.items():
            if parameter is not None:
                parameter.grad = None
                parameter.requires_grad_(other._parameters[name].requires_grad)
    return net.to(memory_format=torch.contiguous_format)
