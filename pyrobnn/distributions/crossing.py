"""Crossing chains: a binary lattice with chains along the rows and along the columns of a matrix.

There is no ancestral sampling, and loopy sum-product is approximate; the two-level chain of
:mod:`pyrobnn.distributions.chains` is the exact default. Reconstructed form.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import softplus

from pyrobnn.distributions.chains import SupportMessages, per_filter
from pyrobnn.distributions.markov import BinaryMarkovChain, ChainMessages, Probability, chain_messages
from pyrobnn.errors import ConfigError


def crossing_messages(
    log_odds: Tensor,
    p01: Probability,
    p10: Probability,
    column_p01: Probability,
    column_p10: Probability,
    *,
    sweeps: int = 3,
) -> SupportMessages:
    """Loopy sum-product on crossing row and column chains.

    The prior is p(s) ∝ Π_rows p(row) · Π_columns p(column) / Π p(s_n), the last factor with the
    geometric mean of both stationary odds so that an uncoupled lattice is an independent support.
    The extrinsic odds of a weight are odds_row · odds_column / odds_prior. One sweep runs all rows,
    then all columns. The normaliser is the region-based (Bethe) one: log Z of the row chains plus
    that of the column chains minus that of the shared single weights, against the same without evidence.

    Error of the marginals on 3×3 lattices with evidence N(0, 2²), 3 sweeps, against enumeration:
    at most 0.03 (mean 0.004) with all probabilities 0.3; at most 0.11 (mean 0.015) at 0.2 to 0.25;
    at 0.1 single weights can be wrong by 0.5. Prefer the two-level chain for tight coupling.

    Args:
        log_odds: ℓ, `[*batch, rows, columns]`.
        p01: P(0 → 1) along a row. p10: P(1 → 0) along a row.
        column_p01: P(0 → 1) down a column. column_p10: P(1 → 0) down a column.
        sweeps: passes over both directions.

    Raises:
        ConfigError: evidence with fewer than two dimensions, `sweeps` below 1, a probability outside (0, 1).
    """
    if log_odds.dim() < 2 or sweeps < 1:
        raise ConfigError(
            f"crossing chains need [*batch, rows, columns], sweeps ≥ 1; got {tuple(log_odds.shape)}, {sweeps}"
        )
    loaded = _sweep(log_odds, p01, p10, column_p01, column_p10, sweeps)
    empty = _sweep(torch.zeros_like(loaded[0]), p01, p10, column_p01, column_p10, sweeps)
    evidence, extrinsic, rows, columns, log_z = loaded
    live = (extrinsic + evidence).amax(-1)
    return SupportMessages(evidence, extrinsic, log_z - empty[-1], None, live, rows, columns)


def _sweep(
    log_odds: Tensor, p01: Probability, p10: Probability, c01: Probability, c10: Probability, sweeps: int
) -> tuple[Tensor, Tensor, ChainMessages, ChainMessages, Tensor]:
    shared = _shared_log_odds(p01, p10, c01, c10, log_odds)
    from_columns = torch.zeros_like(log_odds)
    for _ in range(sweeps):
        rows = chain_messages(log_odds + from_columns, per_filter(p01), per_filter(p10))
        from_rows = rows.extrinsic - shared
        columns = chain_messages((log_odds + from_rows).mT, per_filter(c01), per_filter(c10))
        from_columns = columns.extrinsic.mT - shared
    # Beliefs of single weights, from both sides; the last row pass saw the columns one sweep earlier.
    rows = chain_messages(log_odds + from_columns, per_filter(p01), per_filter(p10))
    from_rows = rows.extrinsic - shared
    extrinsic = from_rows + from_columns + shared
    # With every message written as odds, single weights divide out as softplus of their belief.
    log_z = rows.log_normaliser.sum(-1) + columns.log_normaliser.sum(-1)
    single = softplus(extrinsic + log_odds) - softplus(shared)
    log_z = log_z - single.sum((-1, -2))
    return log_odds, extrinsic, rows, columns, log_z


class CrossingChains(TorchDistribution):
    """A support `[rows, columns]` with chains along rows and columns (a binary lattice).

    p(s) ∝ Π_rows p(row) · Π_columns p(column) / Π p(s_n); see :func:`crossing_messages`.
    `sample` runs chequerboard Gibbs sweeps from an independent start, so draws are approximate;
    `log_prob` leaves out the normaliser, which has no closed form.

    Args:
        p01: P(0 → 1) along a row. p10: P(1 → 0) along a row.
        column_p01: P(0 → 1) down a column. column_p10: P(1 → 0) down a column.
        rows: number of rows. columns: number of columns.
        gibbs_sweeps: sweeps per draw.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "p01": constraints.unit_interval,
        "p10": constraints.unit_interval,
        "column_p01": constraints.unit_interval,
        "column_p10": constraints.unit_interval,
    }
    support = constraints.independent(constraints.boolean, 2)
    has_rsample = False

    def __init__(
        self,
        p01: float,
        p10: float,
        column_p01: float,
        column_p10: float,
        rows: int,
        columns: int,
        *,
        gibbs_sweeps: int = 50,
        validate_args: bool | None = None,
    ) -> None:
        if rows < 1 or columns < 1 or gibbs_sweeps < 1:
            raise ConfigError(
                f"rows, columns and gibbs_sweeps must be at least 1, got {rows}, {columns}, {gibbs_sweeps}"
            )
        self.p01, self.p10, self.column_p01, self.column_p10 = broadcast_all(p01, p10, column_p01, column_p10)
        if self.p01.dim():
            raise ConfigError(f"CrossingChains takes plain probabilities, got shape {tuple(self.p01.shape)}")
        self.gibbs_sweeps = gibbs_sweeps
        super().__init__(torch.Size(), torch.Size([rows, columns]), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability up to the constant normaliser, `[*sample_shape]`; values are rounded at ½."""
        if self._validate_args:
            self._validate_sample(value)
        value = (value > 0.5).to(self.p01.dtype)
        rows, columns = self.event_shape
        along = BinaryMarkovChain(self.p01, self.p10, columns, validate_args=False).log_prob(value).sum(-1)
        chain = BinaryMarkovChain(self.column_p01, self.column_p10, rows, validate_args=False)
        shared = _shared_log_odds(self.p01, self.p10, self.column_p01, self.column_p10, value)
        single = (value * shared - softplus(shared)).sum((-1, -2))
        return along + chain.log_prob(value.mT).sum(-1) - single

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Approximate draws, `[*sample_shape, rows, columns]`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        shared = _shared_log_odds(self.p01, self.p10, self.column_p01, self.column_p10, self.p01)
        state = torch.bernoulli(shared.sigmoid().expand(shape))
        i, j = torch.meshgrid(*(torch.arange(n, device=state.device) for n in self.event_shape), indexing="ij")
        for _ in range(self.gibbs_sweeps):
            for colour in (0, 1):
                odds = _neighbours(state, self.p01, self.p10)
                odds = odds + _neighbours(state.mT, self.column_p01, self.column_p10).mT - shared
                fresh = (torch.rand_like(state) < odds.sigmoid()).to(state.dtype)
                state = torch.where((i + j) % 2 == colour, fresh, state)
        return state


def _neighbours(state: Tensor, p01: Tensor, p10: Tensor) -> Tensor:
    """Log-odds of each element given its two neighbours on the last axis (a stationary chain)."""
    # Stationary binary chains are reversible, so both neighbours speak through the same table.
    if_off = p01.logit()
    if_on = -p10.logit()
    stationary = p01.log() - p10.log()
    message = if_off + state * (if_on - if_off) - stationary
    total = stationary.expand_as(state).clone()
    total[..., 1:] += message[..., :-1]
    total[..., :-1] += message[..., 1:]
    return total


def _shared_log_odds(p01: Probability, p10: Probability, c01: Probability, c10: Probability, like: Tensor) -> Tensor:
    parts = [torch.as_tensor(p, dtype=like.dtype, device=like.device) for p in (p01, p10, c01, c10)]
    return (parts[0].log() - parts[1].log() + parts[2].log() - parts[3].log()) / 2
