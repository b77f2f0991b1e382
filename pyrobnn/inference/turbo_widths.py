"""Widths of a Turbo posterior while its weights are points: at their optimum, from the gradients that there are anyway."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyrobnn.channels import PruningPlan
from pyrobnn.errors import ConfigError
from pyrobnn.guides.turbo import TurboGuide
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate

EVERY = 4  # steps between two looks at the gradients


class PointWidths(Callback):
    """Moves σ of a :class:`~pyrobnn.guides.turbo.TurboGuide` after each epoch in which its weights are their means.

    In the deterministic relaxation no noise is drawn and log σ has no gradient, but NLL + w KL has its optimum at
    σ² = w / (F + w ⟨ρ⟩) for any curvature F of the likelihood. F is estimated as N B times the mean square of the
    likelihood's gradient in μ over batches of B (the empirical Fisher information; gradients of a batch of independent
    examples have a B-th of the square of a single one). The factors of support and precision go on reading μ² alone until
    weights are random: the phase that follows begins where an inference over widths would end.
    """

    def __init__(self) -> None:
        self._squares: dict[str, Tensor] = {}
        self._seen = 0

    def on_batch_end(self, state: FitState) -> None:
        guide = self._guide(state)
        if not guide.point or state.step % EVERY or state.model.last_batch is None:
            return
        n, batch = state.model.data_size, len(state.model.last_batch[1])
        for key, mean in guide.loc.items():
            if mean.grad is not None:
                prior = state.kl_weight / n * (guide.shape[key] / guide.rate[key]) * mean.detach()
                square = n * batch * (mean.grad - prior).square()
                held = self._squares.get(key)
                self._squares[key] = square if held is None or held.shape != square.shape else held + square
        self._seen += 1

    def on_epoch_end(self, state: FitState) -> FitUpdate | None:
        if not self._seen or state.kl_weight <= 0:
            return None
        guide, found = self._guide(state), {}
        for key, total in self._squares.items():
            precision = guide.shape[key] / guide.rate[key]
            variance = state.kl_weight / (total / self._seen + state.kl_weight * precision)
            found[f"guide.log_scale.{key}"] = 0.5 * variance.log()
        self._squares, self._seen = {}, 0
        return FitUpdate(tensors=found)

    def on_cut(self, state: FitState, plan: PruningPlan) -> None:
        self._squares, self._seen = {}, 0  # of tensors of another shape

    def _guide(self, state: FitState) -> TurboGuide:
        if not isinstance(state.guide, TurboGuide):
            raise ConfigError(f"PointWidths needs a TurboGuide, got {type(state.guide).__name__}")
        return state.guide

    def state_dict(self) -> dict[str, Any]:
        return {"squares": dict(self._squares), "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._squares, self._seen = dict(state["squares"]), int(state["seen"])
