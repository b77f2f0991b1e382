"""Binary gates with surrogate gradients, and a Normal whose KL counts only where its gate is on."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all, clamp_probs
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from pyrobnn.errors import ConfigError

GRADIENTS = ("straight-through", "trapezoid")


class StraightThroughBernoulli(TorchDistribution):
    """A Bernoulli whose draws are exactly 0 or 1 and carry a surrogate gradient to the logits.

    Forward: z = 1[y > ½] with y = sigmoid((logits + logit U) / temperature), so P(z = 1) =
    sigmoid(logits) at any temperature. Backward, per draw:

    - `"straight-through"`: dz = dy (Jantre et al. 2021, their released code; temperature 0.5). Biased.
    - `"trapezoid"`: dz/dlogits = ½ |z − γ|, γ = sigmoid(logits). Unbiased wherever the loss is at most
      quadratic in each gate, because f(1) − f(0) = ½ (f'(0) + f'(1)) there: the binary case of ReinMax
      (Liu et al. 2023). No temperature enters.

    Log-probability, moments and the registered KL are those of Bernoulli(γ) itself, not of y.

    Args:
        logits: log-odds of 1.
        temperature: of the relaxation y, above 0.
        gradient: one of the two estimators above.

    Raises:
        ConfigError: temperature ≤ 0, or an unknown estimator.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.boolean
    has_rsample = True

    def __init__(
        self,
        logits: Tensor,
        temperature: float = 0.5,
        gradient: str = "straight-through",
        validate_args: Any = None,
    ) -> None:
        if not temperature > 0:
            raise ConfigError(f"temperature must be positive, got {temperature}; 0.5 is the published value")
        if gradient not in GRADIENTS:
            raise ConfigError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
        self.logits = torch.as_tensor(logits)
        self.temperature, self.gradient = float(temperature), gradient
        super().__init__(self.logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StraightThroughBernoulli:
        new: StraightThroughBernoulli = self._get_checked_instance(StraightThroughBernoulli, _instance)
        new.logits = self.logits.expand(batch_shape)
        new.temperature, new.gradient = self.temperature, self.gradient
        super(StraightThroughBernoulli, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        logits = self.logits.expand(shape)
        uniform = clamp_probs(torch.rand(shape, dtype=logits.dtype, device=logits.device))
        soft = torch.sigmoid((logits + uniform.logit()) / self.temperature)
        hard = (soft.detach() > 0.5).to(logits.dtype)
        if self.gradient == "trapezoid":
            soft = 0.5 * (hard - logits.detach().sigmoid()).abs() * logits
        return hard + (soft - soft.detach())  # the bracket is exactly 0, so draws stay exactly 0 or 1

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none")

    @property
    def probs(self) -> Tensor:
        return torch.sigmoid(self.logits)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def variance(self) -> Tensor:
        return self.probs * torch.sigmoid(-self.logits)

    def entropy(self) -> Tensor:
        on = self.probs * logsigmoid(self.logits)
        return -(on + torch.sigmoid(-self.logits) * logsigmoid(-self.logits))


class SwitchedNormal(Normal):
    """The slab of a spike-and-slab posterior: N(loc, scale²) where a gate is on, the prior where it is off.

    A weight behind a closed gate reaches no output, so its best posterior there is its prior: with the
    model's w ~ N(off_loc, off_scale²) and the gate z,
    q(w | z) = N(loc, scale²) if z = 1, else N(off_loc, off_scale²).

    - `log_prob` is that conditional density at the drawn gate `on`.
    - The registered KL to a Normal averages over the gate, with γ = `inclusion`:
      γ KL(slab‖p) + (1 − γ) KL(off‖p). The second term is 0 when p is the prior given here, which leaves
      the γ-weighted slab KL of Jantre et al. (2021). The ELBO needs no special case.
    - Draws, `mean` and `variance` are the slab's also where the gate is off: no likelihood sees those
      values, log q − log p is 0 there whatever they are, and the straight-through gradient then tells
      what switching the channel *on* would do.

    Args:
        loc: slab mean.
        scale: slab standard deviation.
        off_loc: prior mean.
        off_scale: prior standard deviation.
        on: the drawn gate per coordinate, 0 or 1 (broadcasts).
        inclusion: γ per coordinate (broadcasts).
    """

    arg_constraints = {  # noqa: RUF012  (Normal declares it as an instance attribute)
        "loc": constraints.real,
        "scale": constraints.positive,
        "off_loc": constraints.real,
        "off_scale": constraints.positive,
        "on": constraints.boolean,
        "inclusion": constraints.unit_interval,
    }

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        off_loc: Tensor | float,
        off_scale: Tensor | float,
        on: Tensor,
        inclusion: Tensor,
        validate_args: Any = None,
    ) -> None:
        parts = broadcast_all(loc, scale, off_loc, off_scale, on, inclusion)
        _, _, self.off_loc, self.off_scale, self.on, self.inclusion = parts
        super().__init__(parts[0], parts[1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SwitchedNormal:
        new: SwitchedNormal = self._get_checked_instance(SwitchedNormal, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(Normal, new).__init__(new.loc, new.scale, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        off = Normal(self.off_loc, self.off_scale, validate_args=False).log_prob(value)
        return self.on * super().log_prob(value) + (1 - self.on) * off

    def entropy(self) -> Tensor:
        """Entropy averaged over the gate."""
        off = Normal(self.off_loc, self.off_scale, validate_args=False).entropy()
        return self.inclusion * super().entropy() + (1 - self.inclusion) * off
