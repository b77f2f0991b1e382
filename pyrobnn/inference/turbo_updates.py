"""The outer loop of Turbo-VBI as a callback: closed-form updates between gradient epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from pyrobnn.channels import PruningPlan
from pyrobnn.errors import ConfigError
from pyrobnn.guides.turbo import TurboGuide
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate
from pyrobnn.priors.turbo import Turbo


class TurboUpdates(Callback):
    """Updates q(ρ) and q(s) of a :class:`~pyrobnn.guides.turbo.TurboGuide` between epochs.

    The rate b̄ of weights outside the support falls geometrically from `off_rate_start` to the
    prior's own value over the first `anneal` updates: a wide spike first, so that weights can still
    cross, a narrow one at the end. Each update adds `support_change` (mean |Δπ̃|) and `support`
    (mean π̃) to the epoch's row of the history.

    Args:
        every: epochs of gradients between updates (E_w, 1 to 5).
        per_epoch: updates per epoch, evenly spaced in its steps; more than 1 where there are few epochs.
        inner: closed-form rounds before the chains are solved (2 to 3; 1 is exact coordinate ascent).
        learn: re-estimate the transition probabilities by EM at each update (fixed ones that are too large
            empty filters that the data need).
        off_rate_start: b̄ of the first update, in the unit of the prior's rates; None keeps it fixed.
        anneal: number of updates until b̄ has its final value.
        point_epochs: length of the deterministic first phase (weights at their means); 0 for none.
        size: the largest support allowed after an update, a function of the running fit; None for no bound.

    Raises:
        ConfigError: settings out of range, or a guide of another kind.
    """

    def __init__(
        self,
        *,
        every: int = 1,
        per_epoch: int = 1,
        inner: int = 3,
        learn: bool = True,
        off_rate_start: float | None = 1e-1,
        anneal: int = 5,
        point_epochs: int = 0,
        size: Callable[[FitState], int] | None = None,
    ) -> None:
        if min(every, per_epoch, inner, anneal) < 1 or point_epochs < 0:
            raise ConfigError(
                "every, per_epoch, inner and anneal must be at least 1, point_epochs not negative; "
                f"got {every}, {per_epoch}, {inner}, {anneal}, {point_epochs}"
            )
        if every > 1 and per_epoch > 1:
            raise ConfigError(
                f"updates come every so many epochs or so often per epoch, not both: got {every}, {per_epoch}"
            )
        if off_rate_start is not None and off_rate_start <= 0:
            raise ConfigError(f"off_rate_start must be positive or None, got {off_rate_start}")
        self.every, self.per_epoch, self.inner, self.learn = every, per_epoch, inner, learn
        self.off_rate_start, self.anneal = off_rate_start, anneal
        self.point_epochs, self.size = point_epochs, size
        self.updates = 0
        self._final_rate: float | None = None

    def on_start(self, state: FitState) -> FitUpdate:
        after = self._guide(state).twin()
        after.point = state.epoch < self.point_epochs
        if self._final_rate is None:  # a fresh start; a resumed one has its state already
            self._final_rate = float(after.off_rate)
            self._set_rate(after)
            after.update(inner=self.inner)
        return _update(after, state.model.prior, settings={"guide.update_every": 0})

    def on_batch_end(self, state: FitState) -> FitUpdate | None:
        place = state.step % state.steps_per_epoch  # the last one of an epoch is made at its end
        if place == 0 or place * self.per_epoch % state.steps_per_epoch >= self.per_epoch:
            return None
        after = self._guide(state).twin()
        self.updates += 1
        self._set_rate(after)
        after.update(inner=self.inner, learn=self.learn)
        return _update(after, state.model.prior)

    def on_epoch_end(self, state: FitState) -> FitUpdate:
        after = self._guide(state).twin()
        metrics = {}
        if state.epoch % self.every == 0:
            self.updates += 1
            self._set_rate(after)
            if self.size is not None:
                metrics["price"] = after.bound(self.size(state))
            moved = after.update(inner=self.inner, learn=self.learn)
            metrics |= {"support_change": moved.change, "support": moved.share}
        after.point = state.epoch < self.point_epochs
        return _update(after, state.model.prior, metrics)

    def on_cut(self, state: FitState, plan: PruningPlan) -> FitUpdate:
        return _update(self._guide(state), state.model.prior)

    def _set_rate(self, guide: TurboGuide) -> None:
        assert self._final_rate is not None
        if self.off_rate_start is None:
            return
        share = min(1.0, self.updates / self.anneal)
        guide.set_off_rate(self.off_rate_start ** (1 - share) * self._final_rate**share)

    def _guide(self, state: FitState) -> TurboGuide:
        if not isinstance(state.guide, TurboGuide):
            raise ConfigError(f"TurboUpdates needs a TurboGuide, got {type(state.guide).__name__}")
        return state.guide

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "final_rate": self._final_rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self._final_rate = state["updates"], state["final_rate"]


def _update(
    after: TurboGuide, prior: Any, metrics: dict[str, float] | None = None, settings: dict[str, Any] | None = None
) -> FitUpdate:
    """From a guide with new factors to what the loop is to change; the prior takes over what the guide has learned."""
    settings = {"guide.point": after.point, **(settings or {})}
    if isinstance(prior, Turbo):
        told = copy.copy(prior)
        after.share_with(told)
        settings |= {"prior.learned": told.learned, "prior.precision": told.precision}
    return FitUpdate(
        tensors={f"guide.{name}": buffer for name, buffer in after.named_buffers()},
        settings=settings,
        metrics=metrics or {},
    )
