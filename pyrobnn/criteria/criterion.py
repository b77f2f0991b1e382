"""What a criterion is: a score of channels with a name, a unit and a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.errors import ConfigError
from pyrobnn.summary.saliency import log_evidence
from pyrobnn.summary.types import ChannelSummary, Posterior

READS = ("snr", "evidence")


@dataclass(frozen=True)
class Criterion:
    """One way to say what a channel is worth; `plan(rule=…)`, methods, plots and reports take it.

    Calling it gives a posterior whose channels have its scores.

    Attributes:
        name: what `rule=` takes.
        label: of an axis.
        unit: of what a budget spends, `"nats"` or `"share"` (see :class:`~pyrobnn.summary.types.ChannelSummary`).
        score: of a :class:`~pyrobnn.criteria.context.ScoringContext`; it asks the context for what it needs with
            :meth:`~pyrobnn.criteria.context.ScoringContext.need`.
        threshold: the line where no other one is given; None takes the one that a group's summary has.
        reads: which of a summary's scores is compared with the line, `"snr"` (its own statistic) or `"evidence"`.

    Raises:
        ConfigError: an unknown unit, or another score to read.
    """

    name: str
    label: str
    unit: str
    score: Callable[[ScoringContext], Posterior]
    threshold: float | None = None
    reads: str = "snr"

    def __post_init__(self) -> None:
        if self.unit not in ("nats", "share"):
            raise ConfigError(f"the unit of criterion {self.name!r} is 'nats' or 'share', got {self.unit!r}")
        if self.reads not in READS:
            raise ConfigError(f"criterion {self.name!r} reads one of {', '.join(READS)}, got {self.reads!r}")

    def __call__(self, scoring: ScoringContext) -> Posterior:
        return self.score(scoring)

    def read(self, summary: ChannelSummary) -> tuple[Tensor, float]:
        """The scores of one group, `[channels]`, and the line below which a channel goes.

        Raises:
            ConfigError: the summary has no such score or no line.
        """
        values = summary.snr if self.reads == "snr" else summary.evidence
        line = summary.threshold if self.threshold is None else self.threshold
        if values is None or line is None:
            raise ConfigError(f"criterion {self.name!r} gave group {summary.group!r} no {self.reads} or no line")
        return values, line


def own_statistic(scoring: ScoringContext) -> Posterior:
    """What the posterior's guide says: SNR, inclusion, or magnitude in units of the group's root mean square."""

    def own(summary: ChannelSummary) -> ChannelSummary:
        if summary.statistic == "inclusion":
            return replace(summary, threshold=0.5)
        if summary.statistic in ("magnitude", "score"):
            # There is no noise to compare with.
            relative = summary.snr / summary.snr.square().mean().sqrt().clamp_min(1e-12)
            return replace(summary, snr=relative, threshold=0.1)
        return replace(summary, threshold=1.0)

    return _changed(scoring.posterior, own)


def inclusion(scoring: ScoringContext) -> Posterior:
    """Posterior inclusion probability (the median-probability model, Barbieri and Berger 2004)."""

    def own(summary: ChannelSummary) -> ChannelSummary:
        if summary.statistic != "inclusion":
            raise ConfigError(
                f"group {summary.group!r} has no inclusion probability (its statistic is {summary.statistic}): use rule='snr'"
            )
        return summary

    return _changed(scoring.posterior, own)


def evidence(scoring: ScoringContext) -> Posterior:
    """Log evidence for keeping a channel against a prior that is 0 there (Savage-Dickey).

    Where a guide and prior of weights are Gaussian it is their own. Where a posterior says in nats what the likelihood
    loses without a channel, as all noise and gates do at whatever weight their KL had, it is that of a Gaussian gate
    under the prior of its group's greatest marginal likelihood, see :func:`gate_evidence`.
    """

    def own(summary: ChannelSummary) -> ChannelSummary:
        if summary.evidence is None and summary.unit != "nats":
            raise ConfigError(
                f"group {summary.group!r} has no Gaussian prior and guide, and no loss in nats, to compare evidence: "
                "use rule='snr'"
            )
        return summary if summary.evidence is not None else replace(summary, evidence=gate_evidence(summary.nats))

    return _changed(scoring.posterior, own)


def gate_evidence(nats: Tensor, prior_scale: float | None = None) -> Tensor:
    """Log evidence for keeping channels whose removal loses this much log-likelihood.

    A gate of curvature F = 2 nats with its peak at 1, under N(0, s²), has the posterior N(F σ², σ²), σ² = 1/(F + 1/s²).

    Args:
        nats: `[channels]` of one group, not negative.
        prior_scale: s; None is that of the group's greatest marginal likelihood (:func:`fit_prior_scale`).

    >>> gate_evidence(torch.tensor([0.0, 0.1, 10.0])).sign().tolist()
    [0.0, -1.0, 1.0]
    """
    information = 2 * nats.double()
    scale = fit_prior_scale(torch.diag(information)) if prior_scale is None else prior_scale
    variance = 1 / (information + scale**-2)
    return log_evidence(information * variance, variance.sqrt(), scale).float()


def gate_moments(information: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of gates under a N(0, s²) prior and a quadratic log-likelihood with its peak at 1."""
    eye = torch.eye(len(information), dtype=information.dtype)
    covariance = torch.linalg.inv(information + eye / scale**2)
    return covariance @ information.sum(1), covariance


def fit_prior_scale(information: Tensor) -> float:
    """The s of N(0, s²) under which gates with this Fisher information, peak at 1, are most probable.

    The fixed point s² = mean(μ² + σ²) (MacKay 1992), over the channels of a group.

    Args:
        information: `[channels, channels]`.

    >>> round(fit_prior_scale(1e8 * torch.eye(4, dtype=torch.float64)), 3)   # known exactly to be 1
    1.0
    """
    square = 1.0
    for _ in range(100):
        loc, covariance = gate_moments(information, square**0.5)
        new = float((loc.square() + covariance.diagonal()).mean())
        if abs(new - square) < 1e-9 * square:
            break
        square = new
    return float(square**0.5)


def _changed(posterior: Posterior, change: Callable[[ChannelSummary], ChannelSummary]) -> Posterior:
    return replace(posterior, channels={name: change(summary) for name, summary in posterior.channels.items()})


SNR = Criterion("snr", "SNR", "nats", own_statistic)
INCLUSION = Criterion("inclusion", "inclusion probability", "nats", inclusion, 0.5)
EVIDENCE = Criterion("evidence", "log evidence for keeping", "nats", evidence, 0.0, "evidence")
