"""Supports of weight matrices as binary Markov chains: over filters, and over the weights of each filter.

A weight tensor is read as a matrix `[filters, length]` (length = input channel × kernel taps).

*Two-level chain*, the default: t ∈ {0,1}^filters is a binary Markov chain; a filter with
t_f = 1 carries a binary chain of its own over its weights; one with t_f = 0 is off. Draws are
ancestral and all messages are exact: one forward-backward per filter, one over the filters.

Source: Xia, Tsang, Lau 2023 speak of weight-level and neuron-level structure in the support; the
layout of the chains is reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid, softplus

from pyrobnn.distributions.markov import BinaryMarkovChain, ChainMessages, Probability, chain_messages
from pyrobnn.errors import ConfigError

# Log-odds that stand for certainty; far inside the limit at which messages clamp, so no digit is lost.
_CERTAIN = {torch.float32: 50.0, torch.float64: 500.0}


@dataclass(frozen=True)
class SupportMessages:
    """Messages of a matrix-shaped support, as log-odds.

    Attributes:
        evidence: ℓ, `[*batch, filters, length]`.
        extrinsic: what the prior and all other weights say about a weight, the same shape.
        log_normaliser: log Σ_s p(s) exp(Σ ℓ s), `[*batch]` (an approximation for crossing chains).
        filters: posterior log-odds of t_f, `[*batch, filters]`; None for crossing chains.
        live: posterior log-odds that a filter has any weight in its support, `[*batch, filters]`: t_f = 1
            and not empty. For crossing chains the bound by the filter's likeliest weight.
        inner: messages inside the filters, given t_f = 1 (along rows for crossing chains).
        outer: messages over the filters (along columns for crossing chains).
    """

    evidence: Tensor
    extrinsic: Tensor
    log_normaliser: Tensor
    filters: Tensor | None
    live: Tensor
    inner: ChainMessages
    outer: ChainMessages

    @property
    def posterior(self) -> Tensor:
        """Log-odds of the posterior marginals of the support."""
        return self.extrinsic + self.evidence

    def learned(self, floor: float = 1e-3) -> tuple[float, float, float, float]:
        """One EM step on (p01, p10, filter p01, filter p10), pooled over all chains.

        p01 ← Σ ξ(0,1) / Σ ξ(0,·), p10 ← Σ ξ(1,0) / Σ ξ(1,·). Chains inside filters count with
        P(t_f = 1). The first element of a chain, which also depends on them through the stationary
        state, is left out. Results are held within [floor, 1 − floor]; a chain of one element
        keeps what it had.
        """
        weight: Tensor | float = 1.0 if self.filters is None else self.filters.sigmoid()
        found = []
        for messages, share in ((self.inner, weight), (self.outer, 1.0)):
            counts = messages.transition_counts()
            old = messages.transitions
            for moved, left, before in ((counts.n01, counts.n0, old[0]), (counts.n10, counts.n1, old[1])):
                total = float((left * share).sum())
                value = float((moved * share).sum()) / total if total > 0 else float(before.mean())
                found.append(min(max(value, floor), 1 - floor))
        return found[0], found[1], found[2], found[3]


def two_level_messages(
    log_odds: Tensor, p01: Probability, p10: Probability, filter_p01: Probability, filter_p10: Probability
) -> SupportMessages:
    """Exact sum-product on a two-level chain with evidence on the weights.

    The evidence of a filter is the normaliser of its own chain: log Σ_s p(s | t=1) exp(Σ ℓ s)
    against 0 for the single all-off state under t = 0.

    Args:
        log_odds: ℓ, `[*batch, filters, length]`.
        p01: P(0 → 1) inside a filter; a number or shape `batch`.
        p10: P(1 → 0) inside a filter.
        filter_p01: P(0 → 1) from filter to filter.
        filter_p10: P(1 → 0) from filter to filter.

    Raises:
        ConfigError: evidence with fewer than two dimensions, or a probability outside (0, 1).
    """
    if log_odds.dim() < 2:
        raise ConfigError(f"log_odds must be [*batch, filters, length], got shape {tuple(log_odds.shape)}")
    inner = chain_messages(log_odds, per_filter(p01), per_filter(p10))
    outer = chain_messages(inner.log_normaliser, filter_p01, filter_p10)
    given_on = inner.posterior  # log-odds of s given t_f = 1
    # A live filter may still be empty: p(s_f = 0 | t_f = 1) / Z_f of its posterior mass.
    move01, move10 = inner.transitions
    steps = log_odds.shape[-1] - 1
    log_empty = (move10 / (move01 + move10)).log() + steps * torch.log1p(-move01) - inner.log_normaliser
    tiny = torch.finfo(log_empty.dtype).tiny
    log_full = (-torch.expm1(log_empty.clamp_max(0))).clamp_min(tiny).log()
    log_live = logsigmoid(outer.posterior)
    live = log_live + log_full - torch.logaddexp(logsigmoid(-outer.posterior), log_live + log_empty)
    on = outer.posterior.unsqueeze(-1)
    # P(t)·P(s=1|t) against P(t)·P(s=0|t) + P(not t), everything divided by P(not t).
    posterior = on + logsigmoid(given_on) - softplus(on + logsigmoid(-given_on))
    return SupportMessages(
        evidence=inner.evidence,
        extrinsic=posterior - inner.evidence,
        log_normaliser=outer.log_normaliser,
        filters=outer.posterior,
        live=live,
        inner=inner,
        outer=outer,
    )


class TwoLevelChain(TorchDistribution):
    """A support `[filters, length]` from a chain over filters and a chain inside each live filter.

    The filter states t are summed out exactly in `log_prob`.

    Args:
        p01: P(0 → 1) inside a live filter. p10: P(1 → 0) inside a live filter.
        filter_p01: P(0 → 1) from filter to filter. filter_p10: P(1 → 0) from filter to filter.
        filters: number of filters.
        length: weights in a filter.

    Values are 0/1 floats; the event shape is `(filters, length)`. A value between 0 and 1 (the mean
    that a variational guide hands over) is rounded at ½ by `log_prob`.

    >>> support = TwoLevelChain(0.1, 0.1, 0.2, 0.2, filters=4, length=9)
    >>> support.sample().shape, support.mean[0, 0].item()
    (torch.Size([4, 9]), 0.25)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "p01": constraints.unit_interval,
        "p10": constraints.unit_interval,
        "filter_p01": constraints.unit_interval,
        "filter_p10": constraints.unit_interval,
    }
    support = constraints.independent(constraints.boolean, 2)
    has_rsample = False

    def __init__(
        self,
        p01: Probability,
        p10: Probability,
        filter_p01: Probability,
        filter_p10: Probability,
        filters: int,
        length: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if filters < 1 or length < 1:
            raise ConfigError(f"filters and length must be at least 1, got {filters} and {length}")
        self.p01, self.p10, self.filter_p01, self.filter_p10 = broadcast_all(p01, p10, filter_p01, filter_p10)
        super().__init__(self.p01.shape, torch.Size([filters, length]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TwoLevelChain:
        new = self._get_checked_instance(TwoLevelChain, _instance)
        batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(TwoLevelChain, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def filter_chain(self) -> BinaryMarkovChain:
        """The distribution of t."""
        return BinaryMarkovChain(self.filter_p01, self.filter_p10, self.event_shape[0], validate_args=False)

    @property
    def weight_chain(self) -> BinaryMarkovChain:
        """The distribution of one live filter's support."""
        return BinaryMarkovChain(self.p01, self.p10, self.event_shape[1], validate_args=False)

    @torch.no_grad()
    def sample_levels(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Ancestral draws of (t, s): `[*sample_shape, *batch, filters]` and `[…, filters, length]`."""
        shape = torch.Size(sample_shape)
        filters = self.filter_chain.sample(shape)
        inner = self.weight_chain.expand(self.batch_shape).sample(torch.Size([self.event_shape[0], *shape]))
        return filters, inner.movedim(0, -2) * filters.unsqueeze(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Ancestral draws of the support, `[*sample_shape, *batch, filters, length]`."""
        return self.sample_levels(sample_shape)[1]

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log-probability with the filter states summed out, `[*batch]`."""
        if self._validate_args:
            self._validate_sample(value)
        value = (value > 0.5).to(self.p01.dtype)
        p01, p10 = self.p01.unsqueeze(-1), self.p10.unsqueeze(-1)
        inside = BinaryMarkovChain(p01, p10, self.event_shape[1], validate_args=False).log_prob(value)
        # A filter with any weight on is live for sure: its weight against t = 0 is infinite. Certainty is
        # written as a large log-odds and taken off again, which is exact to the last digit.
        certain = _CERTAIN[value.dtype]
        on = value.any(-1)
        evidence = torch.where(on, inside.new_tensor(certain), inside)
        offset = torch.where(on, inside - certain, inside.new_tensor(0.0))
        filters = chain_messages(evidence, self.filter_p01, self.filter_p10)
        return filters.log_normaliser + offset.sum(-1)

    @property
    def mean(self) -> Tensor:
        """Marginal P(s = 1), `[*batch, filters, length]`: both chains are stationary."""
        share = self.p01 / (self.p01 + self.p10) * self.filter_p01 / (self.filter_p01 + self.filter_p10)
        return share[..., None, None].expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    def messages(self, log_odds: Tensor) -> SupportMessages:
        """Posterior messages given evidence, see :func:`two_level_messages`."""
        return two_level_messages(log_odds, self.p01, self.p10, self.filter_p01, self.filter_p10)


def per_filter(p: Probability) -> Probability:
    """A probability per matrix, shaped to broadcast over its filters."""
    return p.unsqueeze(-1) if isinstance(p, Tensor) else p
