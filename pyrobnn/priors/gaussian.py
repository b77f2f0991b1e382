"""Independent priors on weights: Gaussian, the two-Gaussian scale mixture, Laplace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.distributions.two_spike import NormalPair
from pyrobnn.errors import ConfigError
from pyrobnn.priors.base import WeightPrior

Scale = float | str | Mapping[str, "float | str"]


def fan_in(value: Tensor) -> int:
    """Number of inputs that one output unit of a weight tensor sums over.

    >>> fan_in(torch.zeros(8, 3, 5, 5)), fan_in(torch.zeros(7))
    (75, 1)
    """
    return max(value.numel() // max(value.shape[0], 1), 1) if value.dim() else 1


def check_scale(scale: object, what: str = "scale") -> None:
    """Refuse scales that are no positive finite number, no `"fan_in"` and no mapping of these.

    Raises:
        ConfigError: with what was expected and what came.
    """
    if isinstance(scale, Mapping):
        if not scale:
            raise ConfigError(f"{what} as a mapping needs at least one entry (pattern: number), got none")
        for pattern, one in scale.items():
            if isinstance(one, Mapping):
                raise ConfigError(f"{what}[{pattern!r}] must be a number or 'fan_in', got a mapping")
            check_scale(one, f"{what}[{pattern!r}]")
    elif isinstance(scale, str):
        if scale != "fan_in":
            raise ConfigError(f"{what} must be a positive number or 'fan_in', got {scale!r}")
    elif isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ConfigError(f"{what} must be a positive finite number or 'fan_in', got {scale!r}; 1.0 is usual")


def matching(scale: Scale, name: str) -> float | str:
    """The setting of one tensor: of a mapping that of the first pattern that its name matches.

    Raises:
        ConfigError: a mapping in which no pattern does.
    """
    if not isinstance(scale, Mapping):
        return scale
    for pattern, one in scale.items():
        if fnmatch(name, pattern):
            return matching(one, name)
    raise ConfigError(f"no pattern in the scale mapping matches {name!r} (it has {', '.join(scale)}): add one, or '*'")


def resolve_scale(scale: Scale, name: str, value: Tensor) -> float:
    """The prior scale of one tensor: the number, √(2 / fan-in), or the first matching pattern's entry.

    Raises:
        ConfigError: a mapping in which no pattern matches `name`.

    >>> resolve_scale({"conv*": 0.2, "*": "fan_in"}, "head.weight", torch.zeros(10, 50))  # √(2/50)
    0.2
    """
    scale = matching(scale, name)
    if isinstance(scale, str):
        return math.sqrt(2.0 / fan_in(value))
    return float(scale)


def _expanded(number: float, value: Tensor) -> Tensor:
    """A constant with the shape of `value` that takes no memory."""
    return torch.full((), number, dtype=value.dtype, device=value.device).expand(value.shape)


@dataclass
class _Centred(WeightPrior):
    """A location-scale family around 0."""

    scale: Scale = 1.0
    _family: ClassVar[Any]

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def distribution(self, name: str, value: Tensor) -> torch.distributions.Distribution:
        return self._family(_expanded(0.0, value), _expanded(resolve_scale(self.scale, name, value), value))


@dataclass
class Gaussian(_Centred):
    """w ~ N(0, scale²), independent per weight; its KL to a Gaussian guide is closed-form.

    Args:
        scale: prior standard deviation: one number; `"fan_in"` for √(2 / fan-in) (He et al. 2015, the
            scale at which a ReLU layer keeps the variance), read at the current widths; or a mapping
            from tensor-name patterns to either, first match wins.

    Raises:
        ConfigError: a scale that is not positive and finite.
    """

    _family = dist.Normal


@dataclass
class ScaleMixture(WeightPrior):
    """w ~ π N(0, σ₁²) + (1 − π) N(0, σ₂²), the prior of Bayes by Backprop (Blundell et al. 2015, eq. 7).

    A wide and a narrow Gaussian: most weights are drawn to zero, some are left free. The KL to a
    Gaussian has no closed form and is estimated at the sample.

    Args:
        mix: π, the weight of the wide component, in (0, 1).
        wide: σ₁.
        narrow: σ₂, smaller than `wide` (the paper searches −log σ₁ ∈ {0, 1, 2}, −log σ₂ ∈ {6, 7, 8}).

    Raises:
        ConfigError: π outside (0, 1), a scale that is not positive, or narrow ≥ wide.
    """

    mix: float = 0.5
    wide: float = 1.0
    narrow: float = math.exp(-6.0)

    def __post_init__(self) -> None:
        if not 0 < self.mix < 1:
            raise ConfigError(f"mix must lie in (0, 1), got {self.mix}; 0.5 is the paper's middle choice")
        for what in ("wide", "narrow"):
            if isinstance(getattr(self, what), str | Mapping):
                raise ConfigError(f"{what} must be a positive number, got {getattr(self, what)!r}")
            check_scale(getattr(self, what), what)
        if self.narrow >= self.wide:
            raise ConfigError(f"narrow must be below wide, got narrow={self.narrow} and wide={self.wide}")

    def distribution(self, name: str, value: Tensor) -> torch.distributions.Distribution:
        zero = _expanded(0.0, value)
        return NormalPair(
            _expanded(self.mix, value), zero, _expanded(self.narrow, value), zero, _expanded(self.wide, value)
        )


@dataclass
class Laplace(_Centred):
    """w ~ Laplace(0, scale), density ∝ exp(−|w| / scale): the Bayesian reading of an L1 penalty.

    Args:
        scale: as in :class:`Gaussian`.

    Raises:
        ConfigError: a scale that is not positive and finite.
    """

    _family = dist.Laplace
