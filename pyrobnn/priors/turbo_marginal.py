"""The Turbo prior with support and precisions summed out: a density of the weights alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Gamma, constraints

from pyrobnn.distributions.chains import TwoLevelChain

if TYPE_CHECKING:
    from pyrobnn.priors.turbo import PrecisionPrior


class _ChainEvidence(torch.autograd.Function):
    """log Σ_s p(s) exp(Σ ℓ s), whose gradient in ℓ is the posterior mean of s: no need to go back through the chains."""

    @staticmethod
    def forward(ctx: Any, evidence: Tensor, chains: TwoLevelChain) -> Tensor:
        found = chains.messages(evidence)
        ctx.save_for_backward(found.posterior.sigmoid())
        return found.log_normaliser

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (support,) = ctx.saved_tensors
        return grads[0][..., None, None] * support, None


class ClusteredStudentT(TorchDistribution):
    """p(w) = Σ_s p(s) Π_n ∫ N(w_n; 0, 1/ρ) Γ(ρ; a, b | s_n) dρ for one tensor, exact.

    Given the support, a weight with its precision integrated out is a Student t with 2a degrees of freedom and
    scale √(b/a) (ā, b̄ where the support is off); the supports are summed out by the chains' forward messages
    (:func:`~pyrobnn.distributions.chains.two_level_messages`), so that log p(w) = Σ log t_off(w_n) + log Σ_s p(s)
    exp(Σ ℓ_n s_n) with ℓ = log t_on − log t_off. First derivatives only.

    Args:
        chains: p(s), `[filters, length]`.
        prior: the two Gamma priors.
        shape: of the weight tensor (`filters × length` elements); the event.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, chains: TwoLevelChain, prior: PrecisionPrior, shape: torch.Size, like: Tensor) -> None:
        self.chains, self.prior, self._like = chains, prior, like.detach().new_zeros(())
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Ancestral draws, support first, `[*sample_shape, *event]`."""
        shape = torch.Size(sample_shape) + self.event_shape
        on = self.chains.sample(torch.Size(sample_shape)).reshape(shape).to(self._like.device) > 0.5
        p = self.prior
        precision = Gamma(
            torch.where(on, p.a, p.a_off).to(self._like.dtype), torch.where(on, p.b, p.b_off).to(self._like.dtype)
        ).sample()
        return torch.randn_like(precision) * precision.rsqrt()

    def evidence(self, value: Tensor) -> Tensor:
        """ℓ: what each weight alone says for its support, in nats, `[*sample, filters, length]`."""
        p = self.prior
        ratio = _log_student(value, p.a, p.b) - _log_student(value, p.a_off, p.b_off)
        return ratio.reshape(*value.shape[: value.dim() - len(self.event_shape)], *self.chains.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, `[*sample]`."""
        off = _log_student(value, self.prior.a_off, self.prior.b_off).sum(tuple(range(-len(self.event_shape), 0)))
        summed: Tensor = _ChainEvidence.apply(self.evidence(value), self.chains)
        return off + summed

    @torch.no_grad()
    def inclusion(self, value: Tensor) -> Tensor:
        """P(s_n = 1 | w), `[*sample, *event]`."""
        return self.chains.messages(self.evidence(value)).posterior.sigmoid().reshape(value.shape)

    @property
    def mean(self) -> Tensor:
        return self._like.expand(self.event_shape)


def _log_student(value: Tensor, a: float, b: float) -> Tensor:
    """log ∫ N(w; 0, 1/ρ) Γ(ρ; a, b) dρ."""
    constant = a * math.log(b) + math.lgamma(a + 0.5) - math.lgamma(a) - 0.5 * math.log(2 * math.pi)
    return constant - (a + 0.5) * (b + 0.5 * value.square()).log()
