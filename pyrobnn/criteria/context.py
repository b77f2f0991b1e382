"""`ScoringContext`: what a criterion may use when it scores channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyrobnn.channels import ChannelTable, PruningPlan
from pyrobnn.data import Data
from pyrobnn.errors import ConfigError
from pyrobnn.inference.callbacks import Callback
from pyrobnn.model import BayesianModel
from pyrobnn.summary.types import Posterior


@dataclass(frozen=True)
class ScoringContext:
    """A fitted posterior and what it was fitted with, as far as it is at hand; see :meth:`need`.

    Attributes:
        posterior: what :func:`~pyrobnn.summarize` made of the fitted pair.
        table: channel table of the current network.
        net: the plain network at the posterior means, BatchNorm statistics measured again.
        model, guide: the fitted pair.
        data: that it was fitted to.
        callbacks: of the fit, with what they remember.
        plan: what earlier rounds have kept, in the coordinates of the original network.
        round: number of the round, from 0.
        batch_size: examples per step of the fit.
        device: that computes.
        seed: a seed for a purpose, given its name.
    """

    posterior: Posterior
    table: ChannelTable | None = None
    net: nn.Module | None = None
    model: BayesianModel | None = None
    guide: Any = None
    data: Data | None = None
    callbacks: Sequence[Callback] = ()
    plan: PruningPlan | None = None
    round: int = 0
    batch_size: int = 128
    device: torch.device | str = "cpu"
    seed: Callable[[str], int] | None = None

    def need(self, name: str, asks: str = "this criterion") -> Any:
        """The part of that name.

        Raises:
            ConfigError: it is not at hand; the message names it and who `asks`.
        """
        value = getattr(self, name)
        if value is None:
            given = "groups" if name == "table" else name  # what `pb.plan` calls it
            raise ConfigError(
                f"{asks} needs the {name}, and there is none here: give {given}= (ScoringContext: {name}=)"
            )
        return value

    def callback(self, kind: type[Any], asks: str = "this criterion") -> Any:
        """The callback of that class.

        Raises:
            ConfigError: the fit had none.
        """
        for callback in self.callbacks:
            if isinstance(callback, kind):
                return callback
        raise ConfigError(f"{asks} needs a fit with the callback {kind.__name__}")

    def generator(self, purpose: str) -> torch.Generator:
        """A random generator of its own for a purpose (seed 0 where no run gives seeds)."""
        return torch.Generator().manual_seed(0 if self.seed is None else self.seed(purpose))
