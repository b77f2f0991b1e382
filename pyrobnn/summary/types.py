"""`Posterior`: summaries of sites and channels, draws, history."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrobnn.summary.saliency import costs_nothing

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
        independent: whether its entries are independent Normals, so that loc and scale say all there is to say.
    """

    name: str
    loc: Tensor
    scale: Tensor
    dims: tuple[str, ...]
    kind: str
    group: str | None = None
    independent: bool = False

    def __repr__(self) -> str:
        return f"SiteSummary({self.name!r}, {self.kind}, shape={tuple(self.loc.shape)})"


@dataclass
class ChannelSummary:
    """One group's channels in the coordinates of the original network, cut channels included.

    Attributes:
        group: name of the channel group.
        snr: `[channels]`, what the cut rule reads: a signal-to-noise ratio, an inclusion probability
            a magnitude or a method's own score, as `statistic` says, at the time of the decision.
        nats: `[channels]`, what is lost if the channel alone goes, in the unit that `unit` says.
        unit: `nats` (of log-likelihood, comparable between groups), or `share` for scores whose scale between groups
            means nothing: what the channel has of its group's summed score
            (:func:`~pyrobnn.summary.saliency.share_of_group`).
        statistic: `snr`, `inclusion`, `magnitude` or `score`.
        kept: `[channels]`, the decision.
        threshold: the cut line, if a fixed one was used.
        round: of the last decision on this group.
        evidence: `[channels]`, log evidence for keeping the channel over having it at zero (negative: cut), under the prior it
            was fitted with; see :mod:`pyrobnn.summary.evidence`. None where neither that prior nor a loss in nats says it.
        loc, scale: `[channels]` for channel-level sites, else None.
        ranking: `[channels]`, what a budget spends instead of `nats`, where another score with one scale for all
            groups ranks better; its unit is not nats.
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
    unit: str = "nats"
    ranking: Tensor | None = None

    def __repr__(self) -> str:
        values = f"{self.statistic} {_range(self.snr)}, " if len(self.snr) else ""
        return f"ChannelSummary({self.group!r}, {values}kept {int(self.kept.sum())} of {len(self.kept)})"

    @property
    def costs_nothing(self) -> Tensor:
        """`[channels]`, true where a channel's removal is free by its own score; such channels always go."""
        return costs_nothing(self.nats, self.unit)

    @property
    def cost(self) -> Tensor:
        """`[channels]`, what a planner counts as lost with each channel alone: exactly 0 where that is free, else above 0."""
        value = self.nats if self.ranking is None else self.ranking
        return torch.where(self.costs_nothing, 0.0, value.clamp_min(1e-30))


def _range(values: Tensor) -> str:
    low, middle, high = (f"{float(v):.3g}" for v in (values.min(), values.median(), values.max()))
    return f"{low} to {high} (median {middle})"


@dataclass(frozen=True)
class Convergence:
    """How far a posterior has moved from its start, and whether it still does.

    Attributes:
        scale_change: median |Δ log σ| since the start, averaged over sites by size; None if the start is not known.
        by_site: the same by site.
        kl_fall: share of the KL lost per epoch at the end; None without a history.
        at_curvature: the start was the equilibrium with the likelihood's curvature, which it need not leave.
    """

    scale_change: float | None
    by_site: dict[str, float] = field(default_factory=dict)
    kl_fall: float | None = None
    at_curvature: bool = False

    MOVED, FLAT = 0.1, 0.01  # of log σ; of the KL per epoch

    @property
    def settled(self) -> bool:
        """Whether scales have left their start and the KL has stopped moving, as far as either is known.

        A KL alone says too little: it stands still at the start too, under a small learning rate or at the end of a
        schedule.
        """
        return not self._stuck and (self.kl_fall is None or abs(self.kl_fall) < self.FLAT)

    @property
    def _stuck(self) -> bool:
        return not self.at_curvature and self.scale_change is not None and self.scale_change < self.MOVED

    def __str__(self) -> str:
        facts = ["started at the curvature of the likelihood"] if self.at_curvature else []
        if self.kl_fall is not None:
            word = "falls" if self.kl_fall >= 0 else "rises"
            facts.append(f"the KL {word} by {abs(self.kl_fall):.1%} an epoch")
        if self.scale_change is not None:
            since = " since" if self.at_curvature else ""
            facts.append(f"log σ has moved by {self.scale_change:.2g}{since} (median)")
        if self.settled:
            verdict = "settled" if self.kl_fall is not None or self.at_curvature else "moved from its start"
        elif self._stuck:
            verdict = "the posterior has hardly left its start: fit longer, or raise guide_lr or scale_lr"
        else:
            verdict = "the posterior still moves: fit longer"
        return f"{verdict} ({'; '.join(facts)})"


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
        convergence: how far the posterior has moved from its start; None if nothing is known of it.
    """

    sites: dict[str, SiteSummary]
    channels: dict[str, ChannelSummary]
    draws: dict[str, Tensor] = field(default_factory=dict)
    predictive: dict[str, Tensor] | None = None
    history: list[dict[str, Tensor]] = field(default_factory=list)
    net_widths: dict[str, tuple[int, int]] = field(default_factory=dict)
    trajectories: list[dict[str, dict[str, Tensor]]] = field(default_factory=list)
    convergence: Convergence | None = None

    def __repr__(self) -> str:
        draws = next((len(value) for value in self.draws.values()), 0)
        lines = [f"Posterior of {len(self.sites)} sites, {len(self.channels)} channel groups, {draws} draws"]
        if self.convergence is not None:
            lines.append(f"  {self.convergence}")
        channels = list(self.channels.values())
        lines += [f"  {c!r}" for c in channels[:8]]
        return "\n".join([*lines, *([f"  … and {len(channels) - 8} more"] if len(channels) > 8 else [])])

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """SNR (or inclusion) per channel and group, with the cut line; returns the axes."""
        from pyrobnn.views.plots import snr_plot

        return snr_plot(self, ax=ax, **options)

    def to_arviz(self, **options: Any) -> Any:
        """What the installed ArviZ plots accept (InferenceData before 1.0, DataTree from 1.0)."""
        from pyrobnn.views.arviz import to_arviz

        return to_arviz(self, **options)

    def costs(self) -> dict[str, Tensor]:
        """`{group: [channels]}`, what is lost with each channel alone (:attr:`ChannelSummary.cost`), for a planner."""
        return {name: summary.cost for name, summary in self.channels.items()}

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
            merged = replace(old, statistic=new.statistic, unit=new.unit, threshold=new.threshold, round=new.round)
            for part in ("snr", "nats", "kept", "evidence", "loc", "scale", "ranking"):
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
            convergence=self.convergence if later.convergence is None else later.convergence,
        )
