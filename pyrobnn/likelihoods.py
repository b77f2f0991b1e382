"""Likelihoods: distributions of the targets given the network's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from pyrobnn.errors import ConfigError, DataError
from pyrobnn.metrics.scores import class_logits


class Likelihood(Protocol):
    """Maps the network's output `[B, ...]` to a distribution with batch shape `[B]`."""

    def __call__(self, output: Tensor) -> dist.TorchDistribution:
        """The distribution of the targets of one batch."""


@dataclass(frozen=True)
class Categorical:
    """Class labels `[B]` given logits `[B, classes]`, plain or Gaussian (moment propagation); `[B, 1]` for two classes."""

    def __call__(self, output: Tensor) -> dist.TorchDistribution:
        from pyrobnn.moments import MomentCategorical, Moments

        if isinstance(output, Moments):
            return MomentCategorical(output)
        return dist.Categorical(logits=class_logits(output.float()), validate_args=False)


@dataclass(frozen=True)
class Bernoulli:
    """Several labels of 0 and 1 per image, `[B, K]` float, given logits `[B, K]`."""

    def __call__(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=output.float(), validate_args=False).to_event(1)


@dataclass(frozen=True)
class Gaussian:
    """Real targets `[B]` or `[B, D]`.

    Attributes:
        scale: standard deviation of the observation noise, in units of the target; None takes that of the residuals
            of the batch (the likelihood with its scale profiled out), so that the units do not matter.
    """

    scale: float | None = 1.0

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ConfigError(
                f"the noise scale must be positive and finite, or None for that of the residuals, got {self.scale}"
            )

    def __call__(self, output: Tensor) -> dist.TorchDistribution:
        output = output.float()
        if self.scale is None:
            return ProfiledNormal(output)
        return dist.Normal(output, output.new_tensor(self.scale)).to_event(output.dim() - 1)


@dataclass(frozen=True)
class PixelCategorical:
    """Classes per pixel `[B, H, W]` given logits `[B, K, H, W]`.

    Neighbouring pixels are anything but independent: an image counts as `observations` of them, not as H W.

    Attributes:
        observations: independent pixels that an image is worth.
        ignored: stands where a pixel has no class.
    """

    observations: float = 1.0
    ignored: int = -100

    def __post_init__(self) -> None:
        if not 0 < self.observations < float("inf"):
            raise ConfigError(f"an image must be worth a positive number of observations, got {self.observations}")

    def __call__(self, output: Tensor) -> dist.TorchDistribution:
        return Pixels(output.float(), self.observations, self.ignored)


#: These look at the main output of a network; a likelihood of the user's sees all that the network returns.
OF_TENSORS = (Categorical, Bernoulli, Gaussian, PixelCategorical)


class ProfiledNormal(dist.TorchDistribution):
    """Normal around `loc` `[B, ...]` whose scale is the root mean square of the residuals of the batch.

    The gradient by `loc` is that of the profile likelihood: the scale is its own maximiser, so that it needs none.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real
    has_rsample = False

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape[:1], loc.shape[1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, `[B]`."""
        gap = value - self.loc
        least = torch.finfo(gap.dtype).eps * value.detach().abs().mean() + torch.finfo(gap.dtype).tiny
        scale = gap.detach().square().mean().sqrt().clamp(min=float(least))
        return dist.Normal(self.loc, scale, validate_args=False).log_prob(value).reshape(len(gap), -1).sum(1)

    def beside(self, value: Tensor) -> Tensor:
        """A draw with the scale of these targets' residuals, in the shape of `value`."""
        scale = (value - self.loc).detach().square().mean().sqrt()
        return self.loc.detach() + scale * torch.randn_like(self.loc)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The means: without targets there are no residuals."""
        return self.loc.detach().expand(torch.Size(sample_shape) + self.loc.shape)


class Pixels(dist.TorchDistribution):
    """A class for each pixel of an image, some of which have none; see `PixelCategorical`."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.integer_interval(0, 2**31)
    has_rsample = False

    def __init__(self, logits: Tensor, observations: float, ignored: int) -> None:
        if logits.dim() < 3:
            raise ConfigError(f"classes per pixel need logits [B, K, H, W], got {tuple(logits.shape)}")
        self.logits, self.observations, self.ignored = logits, observations, ignored
        super().__init__(logits.shape[:1], logits.shape[2:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, `[B]`: the mean over the pixels that have a class, times the observations."""
        each = -F.cross_entropy(self.logits, value, ignore_index=self.ignored, reduction="none")
        there = (value != self.ignored).flatten(1).sum(1).clamp(min=1)
        return self.observations * each.flatten(1).sum(1) / there

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Classes drawn pixel by pixel."""
        return dist.Categorical(logits=self.logits.movedim(1, -1), validate_args=False).sample(torch.Size(sample_shape))


def as_observed(distribution: dist.TorchDistribution, y: Tensor) -> Tensor:
    """The targets of a batch as their distribution takes them: labels of 0 and 1 as floats.

    Raises:
        DataError: targets of another shape than the distribution's, which would broadcast silently.
    """
    if distribution.shape() != y.shape:
        raise DataError(
            f"the likelihood of this output expects targets of shape {tuple(distribution.shape())}, "
            f"got {tuple(y.shape)}: reshape the targets or the output"
        )
    try:
        support = distribution.support
    except NotImplementedError:  # a distribution that does not say
        return y
    boolean = getattr(support, "base_constraint", support) is constraints.boolean
    return y.float() if boolean else y
