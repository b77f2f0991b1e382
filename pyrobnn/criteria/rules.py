"""`plan`: from a posterior, or from a network and its data, to a pruning plan by a named rule."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.planner import Limits, as_targets, check_scores, plan_for_budget
from pyrobnn.channels.table import ChannelTable
from pyrobnn.criteria.context import ScoringContext
from pyrobnn.criteria.criterion import Criterion
from pyrobnn.criteria.registry import criterion
from pyrobnn.errors import ConfigError
from pyrobnn.summary.types import ChannelSummary, Posterior

if TYPE_CHECKING:
    from pyrobnn.data import Data


def plan(
    posterior: Posterior | None,
    rule: str | Criterion = "snr",
    threshold: float | None = None,
    *,
    min_channels: int = 1,
    round_to: int | None = None,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    groups: ChannelTable | None = None,
    max_cut: float = 1.0,
    net: nn.Module | None = None,
    data: Data | None = None,
) -> PruningPlan:
    """Decide which channels stay.

    Args:
        posterior: from :func:`~pyrobnn.summarize`; None for a rule that reads none.
        rule: a criterion or its name. `snr` cuts channels with SNR below `threshold` (default 1); `inclusion` those
            with inclusion probability below it (default 1/2); `evidence` (or `bmr`) those whose removal raises the
            model evidence by the Savage-Dickey ratio (default 0 nats), `bmrs-n` and `bmrs-u` those by Bayesian model
            reduction of log-uniform noise; `laplace` uses the curvature of a trained network (with `net`, `data` and
            `groups`, no posterior), `curvature` a fitted posterior of weights (in a method); `l1`, `bn-scale`, `fpgm`, `taylor`, `group-fisher` and `random` are controls;
            `fraction` keeps the highest share `threshold` (default 1/2) of each group; `budget` cuts those that lose
            the fewest nats per cost saved until the targets are met.
        threshold: the cut line of a fixed rule.
        min_channels, round_to, max_cut: see :class:`Limits`.
        target_macs, target_params, target_latency: share of the network's MACs, parameters or milliseconds that may be
            left, in (0, 1); any of them makes the rule a budget, spent on the criterion's scores, and needs `groups` (for
            the last, timed ones: :func:`~pyrobnn.time_layers`).
        groups: the channel table of the posterior's network.
        net, data: for criteria that look at the network itself.

    Raises:
        ConfigError: an unknown rule, a target outside (0, 1), a rule that the posterior cannot serve, a posterior without
            channels.
        PlanError: a budget below what the limits leave.
        NumericalError: a score is NaN.
    """
    if not isinstance(posterior, Posterior | None):
        raise ConfigError(f"expected a Posterior (from pb.summarize), or None, got {type(posterior).__name__}")
    if not isinstance(groups, ChannelTable | None):
        raise ConfigError(
            f"groups is the table that pb.channel_groups(net, example) returns, got {type(groups).__name__}"
        )
    if threshold is not None and not (isinstance(threshold, Real) and threshold == threshold):
        raise ConfigError(f"threshold must be a number, got {threshold!r}")
    limits, chosen = Limits(min_channels, round_to, max_cut), criterion(rule)
    targets: dict[str, Any] = as_targets({"macs": target_macs, "params": target_params, "latency": target_latency})
    budget = any(share is not None for share in targets.values()) or rule == "budget"
    if budget and groups is None:
        raise ConfigError("a budget needs the costs of the channels: pass groups=pb.channel_groups(net, example)")
    scores = chosen(ScoringContext(posterior or Posterior({}, {}), table=groups, net=net, data=data))
    if budget:
        assert groups is not None
        return plan_for_budget(scores.costs(), groups, **targets, limits=limits)
    check_scores({name: summary.snr for name, summary in scores.channels.items()})
    keep: dict[str, list[int]] = {}
    score: dict[str, list[float] | None] = {}
    reason: dict[str, str] = {}
    for name, summary in scores.channels.items():
        values, line = _highest_share(summary, threshold) if rule == "fraction" else chosen.read(summary)
        if threshold is not None and rule != "fraction":
            line = threshold
        check_scores({name: values})
        score[name] = [float(v) for v in values]
        ranked = torch.where(summary.costs_nothing, -torch.inf, values)  # what costs nothing goes, wherever the line is
        keep[name] = _highest(ranked, limits.allowed(len(values), int((ranked >= line).sum())))
        reason[name] = f"{chosen.name if rule != 'fraction' else rule} >= {line:g}"
    channels = {name: len(summary.snr) for name, summary in scores.channels.items()}
    return PruningPlan(keep=keep, channels=channels, score=score, reason=reason)


def _highest_share(summary: ChannelSummary, share: float | None) -> tuple[Tensor, float]:
    fraction = 0.5 if share is None else share
    if not 0 < fraction <= 1:
        raise ConfigError(f"rule 'fraction' keeps a share of each group in (0, 1], got {fraction:g}")
    return summary.snr, float(summary.snr.sort(descending=True).values[math.ceil(fraction * len(summary.snr)) - 1])


def _highest(values: Tensor, count: int) -> list[int]:
    order = torch.argsort(values, descending=True, stable=True)[:count]
    return sorted(int(k) for k in order)
