"""The truncated log-uniform distribution: the prior of Structured Bayesian Pruning."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrobnn.errors import ConfigError


class LogUniform(TorchDistribution):
    """log θ uniform on [a, b], so p(θ) = 1 / (θ (b − a)) on [eᵃ, eᵇ] (Neklyudov et al. 2017).

    Args:
        a: lower end on the log scale.
        b: upper end on the log scale; 0 keeps the noise at or below 1.
        like: any tensor; gives dtype and device (default float32 on the CPU).

    Raises:
        ConfigError: a ≥ b.

    >>> LogUniform(-20.0, 0.0).expand([2]).log_prob(torch.ones(2)).exp()   # 1 / 20 at θ = 1
    tensor([0.0500, 0.0500])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(
        self, a: float = -20.0, b: float = 0.0, *, like: Tensor | None = None, validate_args: Any = None
    ) -> None:
        if not a < b:
            raise ConfigError(f"LogUniform needs a < b on the log scale, got {a} and {b}; usual: -20, 0")
        self.a, self.b = float(a), float(b)
        self._like = torch.zeros(()) if like is None else like.detach().new_zeros(())
        super().__init__(torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        return constraints.interval(math.exp(self.a), math.exp(self.b))

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogUniform:
        new: LogUniform = self._get_checked_instance(LogUniform, _instance)
        new.a, new.b, new._like = self.a, self.b, self._like
        super(LogUniform, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self._like.dtype, device=self._like.device)
        return (self.a + (self.b - self.a) * uniform).exp().clamp(math.exp(self.a), math.exp(self.b))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_density = -value.log() - math.log(self.b - self.a)
        return log_density.expand(torch.broadcast_shapes(value.shape, self.batch_shape))

    @property
    def mean(self) -> Tensor:
        first = (math.exp(self.b) - math.exp(self.a)) / (self.b - self.a)
        return self._like.new_tensor(first).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        second = (math.exp(2 * self.b) - math.exp(2 * self.a)) / (2 * (self.b - self.a))
        return self._like.new_tensor(second).expand(self.batch_shape) - self.mean.square()
