"""Redundant kernels: norms and signal-to-noise ratios of whole kernels, and the gap below which they are redundant."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyrobnn.channels import ChannelGroup, ChannelTable
from pyrobnn.channels.parts import per_unit
from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.planner import Limits
from pyrobnn.errors import ConfigError
from pyrobnn.summary.saliency import share_of_group
from pyrobnn.summary.types import ChannelSummary, Posterior

STATISTICS = ("norm", "snr")
_NEAR_ZERO = 0.01  # of the largest norm: redundant whether there is a gap or not


def rank_kernels(posterior: Posterior, table: ChannelTable, statistic: str = "norm") -> Posterior:
    """A posterior whose channels are ranked as self-compression ranks kernels.

    `norm` is the Frobenius norm of the posterior means of a channel's kernels (Carannante et al. 2021).
    Where a normalisation follows, the norm of a kernel is a matter of units; there it is the geometric
    mean with the norm of the weights that read the channel (ours), which no rescaling changes. `snr` is
    ‖M_k‖ / (σ_k √K), the root mean square of the mean over the standard deviation (a variant of ours, too).
    Channels of different groups are compared by their shares of the squared statistic.

    Args:
        posterior: of a network with random weights.
        table: channel table of the same network.
        statistic: `"norm"` or `"snr"`.

    Raises:
        ConfigError: an unknown statistic, or a group without a random kernel.
    """
    if statistic not in STATISTICS:
        raise ConfigError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}")
    channels: dict[str, ChannelSummary] = {}
    for group in table:
        value = _kernel_snr(posterior, group) if statistic == "snr" else _kernel_norm(posterior, group)
        channels[group.name] = replace(
            posterior.channels[group.name],
            snr=value,
            nats=share_of_group(value.square(), group, table.facts.shapes),
            statistic="snr" if statistic == "snr" else "magnitude",
            unit="share",
            ranking=None,
            evidence=None,
        )
    return replace(posterior, channels=channels)


def _sums(posterior: Posterior, group: ChannelGroup, role: str, *, variance: bool = False) -> tuple[Tensor, Tensor]:
    """Sum over the taps of one role of the squared means (or of the variances), and the number of taps."""
    total, taps = torch.zeros(group.channels), torch.zeros(group.channels)
    for member in group.members:
        site = posterior.sites.get(member.tensor)
        if member.role != role or site is None or site.loc.dim() < 2:
            continue
        value = site.scale.square() if variance else site.loc.square()
        total += per_unit(value, member.axis, member.index)
        taps += per_unit(torch.ones_like(value), member.axis, member.index)
    return total, taps


def _kernel_norm(posterior: Posterior, group: ChannelGroup) -> Tensor:
    own, taps = _sums(posterior, group, "out")
    _require(group, taps)
    norm = own.sqrt()
    if any(member.role == "through" for member in group.members):
        readers, _ = _sums(posterior, group, "in")
        norm = (norm * readers.sqrt()).sqrt()
    return norm


def _kernel_snr(posterior: Posterior, group: ChannelGroup) -> Tensor:
    own, taps = _sums(posterior, group, "out")
    _require(group, taps)
    spread, _ = _sums(posterior, group, "out", variance=True)
    return (own / spread.clamp_min(1e-24)).sqrt()


def _require(group: ChannelGroup, taps: Tensor) -> None:
    if not bool((taps > 0).all()):
        raise ConfigError(f"group {group.name!r} has channels without a random kernel: nothing to rank them by")


def redundant_by_gap(norms: Tensor, *, ratio: float = 2.0) -> Tensor:
    """Which kernels lie below the largest gap of the sorted log norms, or under 1 % of the largest norm.

    "Norm near zero" (Carannante et al. 2021) needs a line; both lines, and that a gap has to be a factor
    of `ratio` to count, are reconstructed.

    Args:
        norms: `[kernels]`, not negative.
        ratio: smallest factor between two neighbours that counts as a gap, above 1.

    Returns:
        Boolean `[kernels]`; at least one kernel is not redundant.

    >>> redundant_by_gap(torch.tensor([1.0, 0.001, 0.8, 0.002])).tolist()
    [False, True, False, True]
    >>> redundant_by_gap(torch.tensor([1.0, 0.6, 0.4])).any().item()
    False
    """
    if ratio <= 1:
        raise ConfigError(f"the ratio of a gap must be above 1, got {ratio:g}")
    if len(norms) < 2:
        return torch.zeros(len(norms), dtype=torch.bool)
    order = torch.argsort(norms, stable=True)
    logs = norms[order].double().clamp_min(1e-12 * float(norms.max()) + 1e-30).log()
    gaps = logs.diff()
    below = int(gaps.argmax()) + 1
    found = torch.zeros(len(norms), dtype=torch.bool)
    if float(gaps[below - 1]) >= math.log(ratio):
        found[order[:below]] = True
    return found | (norms < _NEAR_ZERO * norms.max())


def redundancy_plan(posterior: Posterior, limits: Limits, *, ratio: float = 2.0, line: float = 1.0) -> PruningPlan:
    """Keep the kernels that are not redundant: below the gap of the norms, or with an SNR below `line`.

    Args:
        posterior: from :func:`rank_kernels`.
        limits: lower bounds and multiples.
        ratio: of :func:`redundant_by_gap`.
        line: SNR below which a kernel is redundant (1 is 0 dB).
    """
    keep: dict[str, list[int]] = {}
    for name, summary in posterior.channels.items():
        values = summary.snr
        gone = values < line if summary.statistic == "snr" else redundant_by_gap(values, ratio=ratio)
        count = limits.allowed(len(values), int((~gone).sum()))
        order = torch.argsort(values, descending=True, stable=True)[:count]
        keep[name] = sorted(int(k) for k in order)
    channels = {name: len(summary.snr) for name, summary in posterior.channels.items()}
    return PruningPlan(
        keep=keep,
        channels=channels,
        score={name: [float(v) for v in summary.snr] for name, summary in posterior.channels.items()},
        reason=dict.fromkeys(keep, "not redundant"),
    )
