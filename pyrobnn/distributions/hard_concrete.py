"""The hard-concrete gate, a continuous relaxation of a binary gate, sampled through its logit."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # published values (Louizos et al. 2018, section 4)
OPEN = 2.0  # a logit at which the gate is exactly 1 (from 1.6 on) and one from which noise still reaches the slope


class GateLogit(dist.Logistic):
    """The logit u of a hard-concrete gate: Logistic(logit π, 1), so that P(u > 0) = π.

    A site on the real line: every AutoGuide, `MeanField` and NUTS take it. The gate is
    :func:`hard_concrete` of it and passes ½ where u passes 0, so that the event "u > 0" plays the part
    that "z = 1" has for a Bernoulli gate with probability π.

    Args:
        probs: π, in (0, 1), any shape.
    """

    def __init__(self, probs: Tensor, *, validate_args: Any = None) -> None:
        super().__init__(probs.logit(), torch.ones_like(probs), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return super().expand(batch_shape, self._get_checked_instance(GateLogit, _instance))

    @property
    def mean(self) -> Tensor:
        """The median and mode as well."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """π²/3."""
        return torch.full_like(self.loc, torch.pi**2 / 3)


def hard_concrete(logit: Tensor) -> Tensor:
    """The gate of a logit, in [0, 1]: min(1, max(0, ζ s − γ (s − 1))), s = sigmoid(u / β).

    Exactly 0 for u < −1.6 and exactly 1 for u > 1.6 (β = 2/3, γ = −0.1, ζ = 1.1), with a slope between.
    Source: Louizos, Welling, Kingma 2018, eqs. 10-11.

    >>> hard_concrete(torch.tensor([-3.0, 0.0, 3.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return ((HIGH - LOW) * (logit / TEMPERATURE).sigmoid() + LOW).clamp(0.0, 1.0)


def log_off(loc: Tensor, scale: Tensor) -> Tensor:
    """log P(u ≤ 0) of a logit u ~ N(loc, scale²): how sure a posterior is that the gate is off.

    A point estimate (scale 0) has no width; its logit is read as log-odds.
    """
    spread = torch.special.log_ndtr(-loc / scale.clamp_min(1e-12))
    return torch.where(scale > 0, spread, logsigmoid(-loc))
