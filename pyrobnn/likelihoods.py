"""Observation models: what the network's output says about the targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyro.distributions as dist
from torch import Tensor


class Likelihood(Protocol):
    """Maps the network's output `[B, ...]` to a distribution with batch shape `[B]`."""

    def __call__(self, output: Tensor) -> dist.TorchDistribution:
        """The distribution of the targets of one batch."""


@dataclass(frozen=True)
class Categorical:
    """Class labels `[B]` given logits `[B, classes]`, plain or Gaussian (moment propagation)."""

    def __call__(self, output: Tensor) -> dist.TorchDistribution:
        from pyrobnn.moments import MomentCategorical, Moments

        if isinstance(output, Moments):
            return MomentCategorical(output)
        return dist.Categorical(logits=output.float(), validate_args=False)


@dataclass(frozen=True)
class Gaussian:
    """Real targets `[B]` or `[B, D]` with fixed noise.

    Attributes:
        scale: standard deviation of the observation noise, in units of the target.
    """

    scale: float = 1.0

    def __call__(self, output: Tensor) -> dist.TorchDistribution:
        output = output.float()
        return dist.Normal(output, output.new_tensor(self.scale)).to_event(output.dim() - 1)
