"""Closed-form part of the Turbo-VBI guide: Gamma precisions and the chain-coupled support.

Module A updates q(ρ) and sends evidence for the support; Module B solves the support's chains by sum-product. Source:
Xia, Tsang, Lau 2023; Liu et al. 2020 for the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrobnn.distributions.chains import SupportMessages, two_level_messages
from pyrobnn.distributions.crossing import crossing_messages
from pyrobnn.guides.base import Guide, site_key
from pyrobnn.guides.buffers import BufferDict
from pyrobnn.guides.price import lowest_price
from pyrobnn.guides.turbo_factors import (
    joint_evidence,
    joint_kl,
    mean_field_kl,
    mixture_precision,
    support_evidence,
    update_precision,
)
from pyrobnn.priors.turbo import PrecisionPrior, Transitions, matrix_shape


@dataclass(frozen=True)
class SupportChange:
    """What one update did, averaged over all weights.

    Attributes:
        change: mean |Δπ̃|.
        share: mean π̃, the expected share of weights in the support.
    """

    change: float
    share: float


class SupportFactors(Guide):
    """q(ρ) and q(s) of every tensor as buffers, and their updates for given moments of the weights.

    Attributes:
        factors: `joint` (ρ depends on s) or `mean-field`.
        structure: of the chains, `two-level` or `crossing`.
        point: the weights are taken for points: ⟨w²⟩ = μ².
        loc, log_scale: of the Gaussian weights, by tensor.
        support: π̃ = q(s = 1), in the tensor's shape; `extrinsic` what the chains say of it, in log-odds.
        shape, rate: of q(ρ).
        filters: log-odds that a filter is live.
        transitions: of the chains, as they stand.
        divergence: KL of q(s) and of q(ρ).
        off_rate, price: b̄, and what a weight in the support costs in nats.
    """

    loc: nn.ParameterDict
    log_scale: nn.ParameterDict
    support: BufferDict
    extrinsic: BufferDict
    shape: BufferDict
    rate: BufferDict
    filters: BufferDict
    transitions: BufferDict
    divergence: BufferDict
    off_rate: Tensor
    price: Tensor
    factors: str
    structure: str
    point: bool
    _base: PrecisionPrior
    _names: Mapping[str, float]

    def precision_prior(self, name: str) -> PrecisionPrior:
        """The two Gamma priors of a tensor, in its own unit, with the current b̄."""
        base = self._base
        current = PrecisionPrior(base.a, base.b, base.a_off, float(self.off_rate))
        return current.scaled(self._names[name])

    def transitions_of(self, name: str) -> Transitions:
        """The current transition probabilities of a tensor's chains."""
        return Transitions(*self.transitions[site_key(name)].double().tolist())

    def _square(self, name: str) -> Tensor:
        key = site_key(name)
        square = self.loc[key].detach().square()
        return square if self.point else square + (2 * self.log_scale[key].detach()).exp()

    def _evidence(self, name: str, square: Tensor) -> Tensor:
        prior, key = self.precision_prior(name), site_key(name)
        if self.factors == "joint":
            return joint_evidence(square, prior)
        return support_evidence(self.shape[key], self.rate[key], prior)

    def _set_precision(self, name: str, square: Tensor) -> None:
        prior, key = self.precision_prior(name), site_key(name)
        inclusion = self.support[key]
        if self.factors == "mean-field":
            self.shape[key], self.rate[key] = update_precision(inclusion, square, prior)
            return
        self.shape[key], self.rate[key] = mixture_precision(inclusion, square, prior)

    def _precision_kl(self, name: str, square: Tensor) -> Tensor:
        prior, key = self.precision_prior(name), site_key(name)
        if self.factors == "joint":
            return joint_kl(self.support[key], self.shape[key], self.rate[key], square, prior)
        return mean_field_kl(self.support[key], self.shape[key], self.rate[key], prior)

    def messages(self, name: str, evidence: Tensor, price: float | None = None) -> SupportMessages:
        """Module B for one tensor: sum-product on its chains, evidence (before the price) of the tensor's shape."""
        evidence = evidence.reshape(matrix_shape(evidence.shape)) - (self.price if price is None else price)
        solve = two_level_messages if self.structure == "two-level" else crossing_messages
        return solve(evidence, *self.transitions_of(name).values())

    @torch.no_grad()
    def update(self, *, inner: int = 3, learn: bool = False) -> SupportChange:
        """Closed-form updates of q(ρ) and q(s) for the current (μ, σ), all tensors.

        Module A: `inner` rounds of q(ρ), then q(s) with the chains' extrinsic messages held. Module
        B: new messages, and q(s) from them. `inner=1` is exact coordinate ascent on the ELBO.

        Args:
            inner: rounds of Module A of the mean-field form (the joint form has nothing to iterate); 0
                leaves q(ρ) as it is there.
            learn: also take one EM step on the transition probabilities (Module B then runs twice).

        Returns:
            How far the support moved, and its share.
        """
        moved = total = inside = 0.0
        for name in self._names:
            key = site_key(name)
            before, square = self.support[key], self._square(name)
            # The joint form's evidence does not depend on q(s): there is nothing to iterate.
            for _ in range(inner if self.factors == "mean-field" else 0):
                self._set_precision(name, square)
                if inner > 1:
                    self.support[key] = (self.extrinsic[key] + self._evidence(name, square) - self.price).sigmoid()
            evidence = self._evidence(name, square)
            found = self.messages(name, evidence)
            if learn:
                self.transitions[key] = torch.tensor(found.learned())
                found = self.messages(name, evidence)
            support = found.posterior.sigmoid()
            self.filters[key] = found.live
            self.support[key] = support.reshape(before.shape)
            self.extrinsic[key] = found.extrinsic.reshape(before.shape)
            if self.factors == "joint":
                self._set_precision(name, square)
            support_kl = (support * found.evidence).sum(-1).sum() - found.log_normaliser
            self.divergence[key] = torch.stack([support_kl, self._precision_kl(name, square)])
            moved += float((self.support[key] - before).abs().sum())
            inside += float(support.sum())
            total += support.numel()
        return SupportChange(moved / total, inside / total)

    @torch.no_grad()
    def bound(self, count: int, *, tolerance: float = 0.05, tries: int = 12) -> float:
        """Find the price at which no more than `count` weights have π̃ > ½; takes effect at the next update.

        The size of the support falls as the price rises; the search widens from the present price until
        it brackets `count`, then bisects. Every try solves all chains once.

        Args:
            count: the bound.
            tolerance: ends the search when the size is at most that share below the bound.
            tries: number of tries at the most.

        Returns:
            The price, never negative: a bound that does not bind costs nothing.
        """
        evidence = self.weight_evidence()

        def size(price: float) -> int:
            posteriors = (self.messages(name, own, price).posterior for name, own in evidence.items())
            return sum(int((odds > 0).sum()) for odds in posteriors)

        self.price.fill_(lowest_price(size, count, float(self.price), tolerance, tries))
        return float(self.price)

    @torch.no_grad()
    def set_off_rate(self, value: float) -> None:
        """Move b̄ (in the unit of the prior's rates); takes effect at the next update."""
        PrecisionPrior(self._base.a, self._base.b, self._base.a_off, value)  # checks it
        self.off_rate.fill_(value)

    @torch.no_grad()
    def weight_evidence(self) -> dict[str, Tensor]:
        """What each weight alone says for its support, in nats, without the chains and the price."""
        return {name: self._evidence(name, self._square(name)) for name in self._names}
