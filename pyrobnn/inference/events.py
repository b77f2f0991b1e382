"""Events: what happens beside the gradient steps of a fit.

Closed-form updates, histories, dual ascent, cut-as-you-go, temperature schedules: each is an
object with some of the hooks below. What it remembers is in the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrobnn.channels import PruningPlan
    from pyrobnn.inference.fit import Loop


class Event:
    """Base of all events; every hook is optional."""

    def on_start(self, loop: Loop) -> None:
        """Before the first step (also after a resume)."""

    def on_batch_end(self, loop: Loop) -> None:
        """After each optimiser step."""

    def on_epoch_end(self, loop: Loop) -> PruningPlan | None:
        """After each epoch; a returned plan (coordinates of the current network) is cut at once."""
        return None

    def on_cut(self, loop: Loop, plan: PruningPlan) -> None:
        """After model and guide were cut to `plan`."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs (tensors, numbers, strings, lists, dicts)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""


class Temperature(Event):
    """Moves `guide.temperature` along a schedule of progress."""

    def __init__(self, values: Any) -> None:
        from pyrobnn.inference.schedules import schedule

        self.schedule = schedule(values)

    def on_start(self, loop: Loop) -> None:
        loop.guide.temperature = self.schedule(loop.progress)

    def on_batch_end(self, loop: Loop) -> None:
        loop.guide.temperature = self.schedule(loop.progress)
