"""What is kept of a posterior: summaries of sites and channels, draws, history."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyrobnn.channels import PruningPlan


@dataclass
class SiteSummary:
    """Posterior mean and standard deviation of one site (CPU, fp32).

    Attributes:
        name: the site.
        loc, scale: of the site's shape.
        dims: a name per dimension (`filter`, `in_channel`, `kh`, `kw`, `channel`, …).
        kind: `channel` (one value per channel of `group`), `weight` (a network tensor) or `other`.
        group: the channel group of a channel site.
    """

    name: str
    loc: Tensor
    scale: Tensor
    dims: tuple[str, ...]
    kind: str
    group: str | None = None


@dataclass
class ChannelSummary:
    """One group's channels in the coordinates of the original network, cut channels included.

    Attributes:
        group: name of the channel group.
        snr: `[channels]`, what the cut rule reads: a signal-to-noise ratio, an inclusion probability
            a magnitude or a method's own score, as `statistic` says, at the time of the decision.
        nats: `[channels]`, what is lost if the channel goes, to rank channels by under a budget. For
            channel-level sites half the squared SNR (the Savage-Dickey ratio to leading order), for
            inclusions the log odds. Weight-level sites are not comparable in nats between layers of
            different size: there it is the log of the share of the group's summed squared SNR that is left
            without the channel (:func:`~pyrobnn.summary.saliency.removal_cost`).
        statistic: `snr`, `inclusion`, `magnitude` or `score`.
        kept: `[channels]`, the decision.
        threshold: the cut line, if a fixed one was used.
        round: of the last decision on this group.
        evidence: `[channels]`, log evidence for keeping the channel against a prior that is zero there
            (exact Savage-Dickey ratio, negative: cut); None unless guide and prior are Gaussian.
        loc, scale: `[channels]` for channel-level sites, else None.
    """

    group: str
    snr: Tensor
    nats: Tensor
    statistic: str
    kept: Tensor
    threshold: float | None = None
    round: int = 0
    evidence: Tensor | None = None
    loc: Tensor | None = None
    scale: Tensor | None = None


@dataclass
class Posterior:
    """Everything that is kept of the posterior: see :meth:`to_arviz` and :meth:`plot`.

    Attributes:
        sites: summary of every site, at the end, of the network as it then was.
        channels: summary of every channel group, in original coordinates.
        draws: `{name: [S, ...]}`, posterior draws of channel-level quantities.
        predictive: optional arrays `{"probs": [S, B, classes], "log_likelihood": [S, B], "observed": [B]}`.
        history: one `{group: statistic [channels]}` per recorded epoch or round.
        net_widths: `{group: (before, after)}`.
        trajectories: one entry per round of a method that keeps a history of filter norms, `{group:
            {"norms": [records, channels], "pairs": [P, 2] (goes, stays), "units": [channels]}}`; pairs in the
            order in which they lose a filter and in positions of the round's network, `units` the same
            filters in original coordinates.
    """

    sites: dict[str, SiteSummary]
    channels: dict[str, ChannelSummary]
    draws: dict[str, Tensor] = field(default_factory=dict)
    predictive: dict[str, Tensor] | None = None
    history: list[dict[str, Tensor]] = field(default_factory=list)
    net_widths: dict[str, tuple[int, int]] = field(default_factory=dict)
    trajectories: list[dict[str, dict[str, Tensor]]] = field(default_factory=list)

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """SNR (or inclusion) per channel and group, with the cut line; returns the axes."""
        from pyrobnn.views.plots import snr_plot

        return snr_plot(self, ax=ax, **options)

    def to_arviz(self, **options: Any) -> Any:
        """What the installed ArviZ plots accept (InferenceData before 1.0, DataTree from 1.0)."""
        from pyrobnn.views.arviz import to_arviz

        return to_arviz(self, **options)

    def decide(self, plan: PruningPlan, threshold: float | None = None, round: int = 0) -> Posterior:
        """This posterior with the plan's decisions marked; plan in this posterior's coordinates."""
        channels = {}
        for name, summary in self.channels.items():
            kept = torch.ones(len(summary.snr), dtype=torch.bool)
            if name in plan.keep:
                kept[:] = False
                kept[torch.as_tensor(plan.keep[name], dtype=torch.long)] = True
            channels[name] = replace(summary, kept=kept, threshold=threshold, round=round)
        widths = {name: (len(c.snr), int(c.kept.sum())) for name, c in channels.items()}
        return replace(self, channels=channels, net_widths=widths)

    def merge(self, later: Posterior, plan: PruningPlan) -> Posterior:
        """Add a later round: `later` speaks of the network after `plan` (original coordinates)."""
        channels = dict(self.channels)
        for name, new in later.channels.items():
            old = channels.get(name)
            if old is None:
                channels[name] = new
                continue
            where = torch.as_tensor(plan.keep.get(name, range(len(old.snr))), dtype=torch.long)
            merged = replace(old, statistic=new.statistic, threshold=new.threshold, round=new.round)
            for part in ("snr", "nats", "kept", "evidence", "loc", "scale"):
                a, b = getattr(old, part), getattr(new, part)
                if a is not None and b is not None:
                    a = a.clone()
                    a[where] = b.to(a.dtype)
                    setattr(merged, part, a)
            channels[name] = merged
        widths = {name: (len(c.snr), int(c.kept.sum())) for name, c in channels.items()}
        return replace(
            later,
            sites={**self.sites, **later.sites},
            draws={**self.draws, **later.draws},
            channels=channels,
            net_widths=widths,
            history=self.history + later.history,
            trajectories=self.trajectories + later.trajectories,
        )
