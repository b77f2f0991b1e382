"""`Criterion`: a score of channels with a name, a unit and a default threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from pyrobnn.criteria.context import ScoringContext
from pyrobnn.errors import ConfigError
from pyrobnn.summary.evidence import gate_evidence
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

    Where guide and prior are Gaussian, and for noise, it is that under their own prior, at the weight 1 of the KL whatever
    they were fitted with (:mod:`pyrobnn.summary.evidence`). Where all that is known is what the likelihood loses without
    a channel, in nats, it is that of a Gaussian gate under the prior of its group's greatest marginal likelihood.
    """

    def own(summary: ChannelSummary) -> ChannelSummary:
        if summary.evidence is None and summary.unit != "nats":
            raise ConfigError(
                f"group {summary.group!r} has no Gaussian prior and guide, and no loss in nats, to compare evidence: "
                "use rule='snr'"
            )
        return summary if summary.evidence is not None else replace(summary, evidence=gate_evidence(summary.nats))

    return _changed(scoring.posterior, own)


def _changed(posterior: Posterior, change: Callable[[ChannelSummary], ChannelSummary]) -> Posterior:
    return replace(posterior, channels={name: change(summary) for name, summary in posterior.channels.items()})


SNR = Criterion("snr", "SNR", "nats", own_statistic)
INCLUSION = Criterion("inclusion", "inclusion probability", "nats", inclusion, 0.5)
EVIDENCE = Criterion("evidence", "log evidence for keeping", "nats", evidence, 0.0, "evidence")
