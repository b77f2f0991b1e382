"""Stochastic weight averaging: the mean of a network's weights over the last part of a fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_swa_multi_avg_fn

from pyrobnn.channels import PruningPlan
from pyrobnn.errors import ConfigError
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate

EVERY = 10  # steps between two weights that enter the mean: neighbours say nearly the same


class WeightAverage(Callback):
    """Replaces a network's trainable parameters, after the last step, by their mean over the last steps of the fit.

    Stochastic weight averaging (Izmailov et al. 2018), by torch's own `swa_utils`. Weights that are still moving when
    the rate is small lie around a better point than any of them. Parameters of the guide stay as they are. BatchNorm
    statistics belong to the weights they were measured with: measure them again after the fit
    (:func:`~pyrobnn.inference.batchnorm.reestimate_batchnorm`).

    Args:
        share: part of the fit's steps, its last, whose weights enter the mean; in (0, 1].

    Raises:
        ConfigError: a share outside its range.
    """

    def __init__(self, share: float = 0.25) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"the share of a fit whose weights are averaged is above 0, up to 1, got {share:g}")
        self.share = share
        self._mean: dict[str, Tensor] = {}
        self._count = 0
        self._update = get_swa_multi_avg_fn()

    @torch.no_grad()
    def on_batch_end(self, state: FitState) -> None:
        if state.progress < 1 - self.share or (state.step % EVERY and state.progress < 1):
            return
        current = {name: p.detach() for name, p in state.model.net.named_parameters() if p.requires_grad}
        if not self._count:
            self._mean = {name: value.clone() for name, value in current.items()}
        else:
            self._update(list(self._mean.values()), list(current.values()), self._count)
        self._count += 1

    def on_epoch_end(self, state: FitState) -> FitUpdate | None:
        if state.progress < 1 or not self._count:
            return None
        return FitUpdate(tensors={f"net.{name}": value for name, value in self._mean.items()})

    def on_cut(self, state: FitState, plan: PruningPlan) -> None:
        """Weights of another shape begin another mean."""
        self._mean, self._count = {}, 0

    def state_dict(self) -> dict[str, Any]:
        return {"mean": dict(self._mean), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean, self._count = dict(state["mean"]), state["count"]
