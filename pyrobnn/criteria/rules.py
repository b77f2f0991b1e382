"""From a posterior to a plan by a rule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.planner import Limits, plan_for_budget
from pyrobnn.errors import ConfigError
from pyrobnn.summary.types import ChannelSummary, Posterior

if TYPE_CHECKING:
    from pyrobnn.channels.table import ChannelTable

RULES = ("snr", "inclusion", "bmr", "fraction", "budget")


def plan(
    posterior: Posterior,
    rule: str = "snr",
    threshold: float | None = None,
    *,
    min_channels: int = 1,
    round_to: int | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    groups: ChannelTable | None = None,
    max_cut: float = 1.0,
) -> PruningPlan:
    """Decide which channels stay.

    Args:
        posterior: from :func:`~pyrobnn.summarize`.
        rule: `snr` cuts channels with SNR below `threshold` (default 1); `inclusion` those with
            inclusion probability below it (default 1/2); `bmr` (Bayesian model reduction) those whose
            removal raises the model evidence by the Savage-Dickey ratio (default 0 nats); `fraction` keeps
            the highest share `threshold` (default 1/2) of each group; `budget` cuts those that lose
            the fewest nats per cost saved until the targets are met.
        threshold: the cut line of a fixed rule.
        min_channels, round_to, max_cut: see :class:`Limits`.
        target_macs, target_params: share of the network's MACs or parameters that may be left, in
            (0, 1); either makes the rule a budget and needs `groups`.
        groups: the channel table of the network that the posterior speaks of.

    Raises:
        ConfigError: an unknown rule, a target outside (0, 1), a rule that the posterior cannot serve.
        PlanError: a budget below what `min_channels` leaves.
    """
    limits = Limits(min_channels, round_to, max_cut)
    if target_macs is not None or target_params is not None or rule == "budget":
        if groups is None:
            raise ConfigError("a budget needs the costs of the channels: pass groups=pb.channel_groups(net, example)")
        return plan_for_budget(
            posterior.costs(), groups, target_macs=target_macs, target_params=target_params, limits=limits
        )
    if rule not in RULES:
        raise ConfigError(f"unknown rule {rule!r}: use one of {', '.join(RULES)}")
    keep: dict[str, list[int]] = {}
    score: dict[str, list[float] | None] = {}
    reason: dict[str, str] = {}
    for name, summary in posterior.channels.items():
        values, line = _statistic(summary, rule, threshold)
        score[name] = [float(v) for v in values]
        count = limits.allowed(len(values), int((values >= line).sum()))
        keep[name] = _highest(values, count)
        reason[name] = f"{rule} >= {line:g}"
    channels = {name: len(summary.snr) for name, summary in posterior.channels.items()}
    return PruningPlan(keep=keep, channels=channels, score=score, reason=reason)


def _statistic(summary: ChannelSummary, rule: str, threshold: float | None) -> tuple[Tensor, float]:
    if rule == "fraction":
        fraction = 0.5 if threshold is None else threshold
        if not 0 < fraction <= 1:
            raise ConfigError(f"rule 'fraction' keeps a share of each group in (0, 1], got {fraction:g}")
        return summary.snr, float(summary.snr.sort(descending=True).values[math.ceil(fraction * len(summary.snr)) - 1])
    if rule == "bmr":
        if summary.evidence is None:
            raise ConfigError(
                f"group {summary.group!r} has no Gaussian prior and guide to compare evidence: use rule='snr'"
            )
        return summary.evidence, 0.0 if threshold is None else threshold
    if rule == "inclusion":
        if summary.statistic != "inclusion":
            raise ConfigError(
                f"group {summary.group!r} has no inclusion probability (its statistic is {summary.statistic}): use rule='snr'"
            )
        return summary.snr, 0.5 if threshold is None else threshold
    if summary.statistic == "inclusion":
        return summary.snr, 0.5 if threshold is None else threshold
    if summary.statistic in ("magnitude", "score"):
        # There is no noise to compare with: relative to the group's root mean square.
        relative = summary.snr / summary.snr.square().mean().sqrt().clamp_min(1e-12)
        return relative, 0.1 if threshold is None else threshold
    return summary.snr, 1.0 if threshold is None else threshold


def _highest(values: Tensor, count: int) -> list[int]:
    order = torch.argsort(values, descending=True, stable=True)[:count]
    return sorted(int(k) for k in order)
