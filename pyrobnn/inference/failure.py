"""Repeats a step whose loss or gradient was not finite, to name the site or tensor at fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.errors import NumericalError
from pyrobnn.inference.elbo import check_finite
from pyrobnn.inference.objective import Objective
from pyrobnn.inference.terms import Step

ADVICE = "lower the learning rate or clip gradients"


def seeded(seed: int, device: torch.device) -> None:
    """What `torch.manual_seed` does for one device: for all of them it costs a millisecond, and memory where they rest."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


class Unreproduced(NumericalError):
    """A failure that does not come back when its step is repeated."""


def named_failure(objective: Objective, seed: int, x: Tensor, y: Tensor, view: Tensor | None) -> NumericalError:
    """The error of a step that failed, found by repeating it site by site; parameters stay as they are.

    The step is repeated to its end whatever is found on the way: of several processes one alone may find it, and the others
    wait for its part of what a backward pass exchanges.

    Args:
        objective: with the parameters that the step had.
        seed: of the step's draws.
        x, y, view: its batch.
    """
    seeded(seed, x.device)
    model, guide = objective.model, objective.guide
    first: list[str] = []
    found: NumericalError | None = None

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not first and isinstance(output, Tensor) and not torch.isfinite(getattr(output, "loc", output)).all():
                first.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.net.named_modules() if name]
    objective.zero_grad()
    try:
        with model.frozen_statistics():
            parts = objective.elbo.parts(model, guide, x, y)
            try:
                check_finite(parts)
            except NumericalError as error:
                where = f" (first in the output of module {first[0]!r})" if first and "'obs'" in str(error) else ""
                found = NumericalError(str(error) + where)
            loss = parts.nll + objective.kl_weight * parts.total_kl(parts.nll)
            step = Step(x, y, parts.output, model, guide, view)
            for term in objective.terms:
                value = term(step)
                if found is None and not torch.isfinite(value):
                    found = NumericalError(
                        f"the term {type(term).__name__} of the loss is {float(value.detach())}: {ADVICE}"
                    )
                loss = loss + value
            loss.backward()
    except NumericalError as error:
        found = found or error
    finally:
        for handle in handles:
            handle.remove()
    if found is not None:
        return found
    named = [*model.net.named_parameters(), *guide.named_parameters()]
    for name, parameter in named:
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return NumericalError(f"the gradient of {name!r} is not finite: {ADVICE}")
    return Unreproduced(f"the loss or its gradient was not finite in one step, and is when it is repeated: {ADVICE}")
