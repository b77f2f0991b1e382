"""The optimiser steps of a fit: seeds, rates, and failures that are named later, when the device is read."""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrobnn.errors import ConfigError
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.failure import Unreproduced, named_failure, seeded
from pyrobnn.inference.objective import Objective
from pyrobnn.inference.optimisers import new_optimiser
from pyrobnn.inference.precision import as_channels_last, resolve_device
from pyrobnn.inference.schedules import schedule
from pyrobnn.inference.step import Sums, new_step
from pyrobnn.io.processes import current
from pyrobnn.model import BayesianModel

APART = 0x9E3779B97F4A7C15  # between the seeds of two processes; odd, so that no two are the same


class Steps:
    """Optimiser steps on one objective, whose sums are read from the device now and then.

    Attributes:
        config: of the fit.
        processes: that share it.
        device: where it runs.
        generator: source of order, augmentation and the seeds of the steps.
        objective: the model, guide and loss.
        optimiser, device_step: of the current pair, see :meth:`renew_step`.
        step: steps so far.
        steps_per_epoch: at the most.
    """

    objective: Objective
    steps_per_epoch: int

    def __init__(self, config: FitConfig) -> None:
        self.config, self.processes, self.step = config, current(), 0
        self.device = resolve_device(config.device)
        self.generator = torch.Generator().manual_seed(config.seed)
        self._lr, self._kl = schedule(config.lr_schedule), schedule(config.kl_schedule)
        self._rate, self._kl_weight = 1.0, self._kl(0.0)  # of the last step, on the host
        self._validate = is_validation_enabled()
        self._unread: list[
            tuple[int, Tensor, Tensor, Tensor | None]
        ] = []  # seed and batch of the steps since the last read
        self._good = 0  # steps of the epoch without a failure, at the last read

    def renew_step(self) -> None:
        """A new optimiser and step for the model and guide of now."""
        self.optimiser = new_optimiser(self.config, self.model.net, self.guide)
        self.device_step = new_step(self.objective, self.optimiser, self.config, self.device)
        self._unchecked = self._validate

    @property
    def model(self) -> BayesianModel:
        """The model, as it is after the cuts so far."""
        return self.objective.model

    @property
    def guide(self) -> Any:
        """The guide, likewise."""
        return self.objective.guide

    @property
    def progress(self) -> float:
        """Share of the fit's steps that are done."""
        return self.step / max(1, self.config.epochs * self.steps_per_epoch)

    def train_step(self, x: Tensor, y: Tensor, view: Tensor | None = None, total: int | None = None) -> None:
        """One optimiser step; what it gave is in the sums of `device_step`.

        `view` and `total` are those of the :class:`~pyrobnn.data.split.Batch`, for terms that know images by the one.
        """
        self._rate = _checked("lr_schedule", self._lr(self.progress))
        self._kl_weight = _checked("kl_schedule", self._kl(self.progress))
        self.device_step.set(self._rate, self._kl_weight)
        # The draws of a step depend on the loop's generator alone: resuming is exact, processes can differ.
        seed = int(torch.randint(2**62, (1,), generator=self.generator))
        if not self.config.same_noise:
            seed = (seed + self.processes.rank * APART) % 2**62
        x = as_channels_last(x)
        if self._unchecked:
            self._check(seed, x, y, view)
        self._unread.append((seed, x, y, view))
        seeded(seed, self.device)
        with pyro.validation_enabled(False):
            self.device_step(x, y, view, total)
        self.step += 1

    def _check(self, seed: int, x: Tensor, y: Tensor, view: Tensor | None) -> None:
        """Pyro's and torch's validation of all sites on one batch, without gradients; nothing moves."""
        self._unchecked = False
        with torch.no_grad(), self.model.frozen_statistics():
            seeded(seed, self.device)
            try:
                self.objective.elbo.parts(self.model, self.guide, x, y)
            except ValueError as error:  # an argument out of its range: of a number that is not finite, or the user's
                with pyro.validation_enabled(False), torch.enable_grad():
                    found = named_failure(self.objective, seed, x, y, view)
                if isinstance(found, Unreproduced):
                    raise
                raise found from error

    def read(self) -> Sums:
        """The sums of the epoch so far.

        Raises:
            NumericalError: a loss or gradient was not finite, naming the site, term, module or parameter.
        """
        sums = self.device_step.read()
        if sums.failed:
            step = self._unread[int(sums.good) - self._good]
            with pyro.validation_enabled(False):
                error = named_failure(self.objective, *step)
            raise self.processes.first_error(error, lambda other: not isinstance(other, Unreproduced))
        self._good = sums.good
        self._unread.clear()
        return sums


def _checked(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} must give finite numbers of at least 0, got {value}")
    return value
