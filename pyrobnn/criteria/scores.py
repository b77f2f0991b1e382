"""Scores of channels on the channel table: filter norms and the criteria of plain-network pruning.

Each takes a network (or the moments of its weights) and its channel table and returns
`{group: [channels]}`, larger for channels to keep, in the units of the publication. Filters of a group
with several producers (residual sums) add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.channels import ChannelTable, GateMap
from pyrobnn.channels.parts import gather_padded, per_unit
from pyrobnn.distributions.folded import expected_abs, expected_capped
from pyrobnn.nets.calling import eval_mode
from pyrobnn.nets.recomputing import call_outliving
from pyrobnn.summary.saliency import producers, share_of_group
from pyrobnn.summary.types import ChannelSummary, Posterior

Scores = dict[str, Tensor]
Moments = Mapping[str, tuple[Tensor, Tensor]]


def filter_sums(table: ChannelTable, value: Callable[[str], Tensor]) -> Scores:
    """Sum over the taps of every channel's own filters.

    Args:
        table: of the network.
        value: gives a tensor of the shape of the named one, to be summed.
    """
    found = {}
    for group in table:
        total = torch.zeros(group.channels)
        for member in producers(group, table.facts.shapes):
            total = total + per_unit(value(member.tensor), member.axis, member.index)
        found[group.name] = total
    return found


def moments_of(net: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A plain network's weights as moments with scale 0."""
    return {name: (p.detach(), torch.zeros_like(p)) for name, p in net.named_parameters()}


def l1_norms(table: ChannelTable, moments: Moments) -> Scores:
    """E‖w_i‖₁ per channel: for point weights the L1 norm of its filters (Li et al. 2017)."""
    return filter_sums(table, lambda name: expected_abs(*moments[name]))


def capped_l1_scores(table: ChannelTable, moments: Moments, mix: float = 0.5, expected: bool = True) -> Scores:
    """(1 − κ) Σ|w| + κ Σ min(|w|, θ), θ the layer's median magnitude.

    The norm is Kumar et al. (2021), Shaikh et al. (2024); the weighting and θ are reconstructed. The L1
    part measures energy; the capped part counts the taps that are not negligible, so that one giant tap
    does not outweigh many useful ones.

    Args:
        table: of the network.
        moments: `{tensor: (mean, standard deviation)}`.
        mix: κ in [0, 1].
        expected: the expectation under the posterior (folded normal), else the norm of the means.
    """

    def score(name: str) -> Tensor:
        loc, scale = (part.detach().float() for part in moments[name])
        scale = scale if expected else torch.zeros_like(scale)
        cap = loc.abs().median()
        return (1 - mix) * expected_abs(loc, scale) + mix * expected_capped(loc, scale, cap)

    return filter_sums(table, score)


def fpgm_scores(net: nn.Module, table: ChannelTable) -> Scores:
    """Summed Euclidean distance to all filters of the layer: what is near the geometric median is replaceable.

    He et al. 2019 (FPGM), eq. 4.
    """
    tensors = dict(net.named_parameters())
    found = {}
    for group in table:
        total = torch.zeros(group.channels)
        for member in producers(group, table.facts.shapes):
            rows = tensors[member.tensor].detach().float().cpu().movedim(member.axis, 0).flatten(1)
            rows = gather_padded(rows, member.index).flatten(1)
            # Not by matrix products, whose rounding makes a filter differ from itself.
            total = total + torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
        found[group.name] = total
    return found


def norm_scales(net: nn.Module, table: ChannelTable) -> Scores:
    """Mean |γ| of the BatchNorm layers that a channel passes (network slimming, Liu et al. 2017).

    Groups without such a layer are left out.
    """
    scales = {
        f"{path}.weight" if path else "weight": module.weight.detach().float().cpu().abs()
        for path, module in net.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None
    }
    found = {}
    for group in table:
        parts = [per_unit(scales[m.tensor], m.axis, m.index) for m in group.members if m.tensor in scales]
        if parts:
            found[group.name] = torch.stack(parts).mean(0)
    return found


def taylor_scores(net: nn.Module, table: ChannelTable, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """Root mean square over batches of ∂loss/∂θ_c, θ_c a gate of value 1 on the channel's readers.

    First-order Taylor expansion of removing the channel (Molchanov et al. 2019, their gate variant). The
    network is in eval mode: with batch statistics a BatchNorm behind the gate would hide part of its effect.

    Args:
        net: a plain classifier, put back in its mode afterwards.
        table: of the network.
        batches: normalised images and labels, on the network's device.
    """
    gates = GateMap(table)
    tensors = {name: t.detach() for name, t in (*net.named_parameters(), *net.named_buffers())}
    squares = {group.name: torch.zeros(group.channels) for group in table}
    count = 0
    with eval_mode(net):
        for x, y in batches:
            factors = {g.name: torch.ones(g.channels, device=x.device, requires_grad=True) for g in table}
            loss = F.cross_entropy(call_outliving(net, gates.apply(tensors, factors), x), y)
            for name, gradient in zip(factors, torch.autograd.grad(loss, list(factors.values())), strict=True):
                squares[name] += gradient.square().cpu()
            count += 1
    return {name: (value / max(1, count)).sqrt() for name, value in squares.items()}


def scored(
    posterior: Posterior,
    scores: Mapping[str, Tensor],
    table: ChannelTable,
    parts: Mapping[str, Tensor] | None = None,
    *,
    unit: str = "share",
) -> Posterior:
    """The posterior with these scores in place of its own statistic, for the groups that have one.

    What is lost with a channel is its share of the group (:func:`~pyrobnn.summary.saliency.share_of_group`). It is free
    of units: criteria as different as norms and gradients meet the budget planner on an equal footing. Scores that do
    not add up to what a group is worth, such as distances, bring `parts` that do. Scores in `nats` stay as they are.
    """
    channels, parts = dict(posterior.channels), parts or scores
    for name, score in scores.items():
        score = score.detach().float().cpu()
        nats = score if unit == "nats" else share_of_group(parts[name], table[name], table.facts.shapes)
        old = channels.get(name) or ChannelSummary(name, score, nats, "score", torch.ones(len(score), dtype=torch.bool))
        channels[name] = replace(
            old, snr=score, nats=nats, statistic="score", evidence=None, ranking=None, threshold=None, unit=unit
        )
    return replace(posterior, channels=channels)
