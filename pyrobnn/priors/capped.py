"""The L1 and capped-L1 norms as a prior on weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn.distributions.capped_laplace import CappedLaplace
from pyrobnn.errors import ConfigError
from pyrobnn.priors.base import WeightPrior
from pyrobnn.priors.gaussian import Scale, check_scale, matching, resolve_scale


@dataclass
class CappedL1(WeightPrior):
    """w ~ CappedLaplace: the penalty (1 − κ)|w| + κ min(|w|, cap), seen as a density.

    The penalty is the combined norm by which Kumar et al. (2021) and Shaikh et al. (2024) score filters;
    as a prior it is reconstructed. κ = 0 is the Laplace prior of a plain L1 penalty. Its KL to a Gaussian
    guide is closed-form.

    Args:
        scale: of the inner Laplace part; as in :class:`~pyrobnn.priors.gaussian.Gaussian`, where `"fan_in"`
            means the scale at which the plain Laplace density has variance 2 / fan-in.
        mix: κ in [0, 1).
        cap: in units of the scale; log 2 by default, the median magnitude of Laplace(0, 1).

    Raises:
        ConfigError: a value outside its range.
    """

    scale: Scale = "fan_in"
    mix: float = 0.5
    cap: float = math.log(2.0)

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if not 0 <= self.mix < 1:
            raise ConfigError(f"mix, the part of the capped norm, must lie in [0, 1), got {self.mix}; 0.5 is usual")
        if not 0 < self.cap < math.inf:
            raise ConfigError(f"cap must be positive and finite, got {self.cap}; log 2 is the median of Laplace(0, 1)")

    def distribution(self, name: str, value: Tensor) -> Any:
        scale = resolve_scale(self.scale, name, value)
        if matching(self.scale, name) == "fan_in":
            scale /= math.sqrt(2.0)
        one = torch.full((), scale, dtype=value.dtype, device=value.device)
        return CappedLaplace(one, one * self.cap, one.new_full((), self.mix)).expand(value.shape)
