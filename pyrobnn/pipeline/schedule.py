"""The number of epochs of each phase of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pyrobnn.data import Data
from pyrobnn.errors import ConfigError
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.fit import fit
from pyrobnn.inference.recipe import batch_size_for
from pyrobnn.model import BayesianModel
from pyrobnn.pipeline.config import CompressionConfig
from pyrobnn.pipeline.recipe import Recipe


@dataclass(frozen=True)
class Epochs:
    """Epochs by phase.

    Attributes:
        dense: training of the dense network (0 with given weights).
        infer: one number per round.
        tune: tuning of the compact network.
        retune: kept back for a second tuning, if the first misses `--max-drop`.
        batch_size: examples per step.
    """

    dense: int
    infer: tuple[int, ...]
    tune: int
    retune: int
    batch_size: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.dense + sum(self.infer) + self.tune + self.retune

    def data(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "infer": list(self.infer)}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Epochs:
        """What :meth:`data` gave."""
        return cls(**{**data, "infer": tuple(data["infer"])})


def share_out(recipe: Recipe, config: CompressionConfig, data: Data, net: nn.Module, *, trained: bool) -> Epochs:
    """Split the epochs of a run between its phases.

    Without `--epochs` or `--minutes`: as many as the recipe says, more where the data set is so small that this would
    be under 5,000 steps. As many again for the search under `--max-drop`, whose networks are small.
    A recipe with no share for inference has rounds without epochs, unless `--max-drop` must see each cut recover.
    `--epochs` is never exceeded.

    Raises:
        ConfigError: fewer epochs than phases, see :func:`check_epochs`.
    """
    least = check_epochs(recipe, config, trained=trained)
    judged = config.max_drop is not None and not config.has_budget
    batch = recipe.batch_size or batch_size_for(len(data.train))
    steps = data.train.steps(batch)
    total, more = config.epochs, 0
    if total is None and config.minutes is not None:
        total = max(2, int(0.8 * config.minutes * 60 / _epoch_seconds(net, data, config, batch)))
    if total is None:
        total = recipe.epochs_given if trained else recipe.epochs
        total = max(total, min(200, 5000 // steps))
        more = total if judged else 0
    total = max(total, least)  # where it is not the user's
    if config.from_scratch is not None:
        return Epochs(0, (), total, 0, batch)
    inferred = least - 1 - (not trained)
    dense = 0 if trained else min(total - 1 - inferred, max(1, round(total * recipe.dense_share)))
    rest = total - dense
    retune = rest // 4 if judged and rest >= 8 else 0
    if not inferred:
        return Epochs(dense, (0,) * recipe.rounds, rest, 0, batch)
    tune = retune or min(rest - 1, max(1, round(rest * (1 - recipe.infer_share))))
    for_rounds = max(1, rest - tune - retune)
    rounds = max(1, min(recipe.rounds, for_rounds))
    infer = tuple(for_rounds // rounds + (k < for_rounds % rounds) for k in range(rounds))
    return Epochs(dense, infer, tune, retune + more, batch)


def check_epochs(recipe: Recipe, config: CompressionConfig, *, trained: bool) -> int:
    """The least number of epochs: one for the dense network unless it was given, one to infer where that takes any, one to tune.

    Raises:
        ConfigError: `--epochs` is below it.
    """
    judged = config.max_drop is not None and not config.has_budget
    phases = {"train the dense network": not trained, "infer": recipe.infer_share > 0 or judged, "tune": True}
    needed = [phase for phase, is_needed in phases.items() if is_needed]
    if config.from_scratch is None and config.epochs is not None and config.epochs < len(needed):
        raise ConfigError(
            f"--epochs must be at least {len(needed)} here (one each to {', '.join(needed[:-1])} and {needed[-1]}), got {config.epochs}"
        )
    return len(needed) if config.from_scratch is None else 1


def _epoch_seconds(net: nn.Module, data: Data, config: CompressionConfig, batch: int) -> float:
    """Seconds of a training epoch, from a few steps on a copy."""
    few = replace(data, train=data.train.take(8 * batch))
    model = BayesianModel(net, data_size=len(few.train))
    settings = FitConfig(epochs=1, batch_size=batch, precision=config.precision, device=config.device, validate=False)
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        fit(model, NoLatents(), few, config=settings, progress=False)
    return (time.perf_counter() - start) * len(data.train) / len(few.train)
