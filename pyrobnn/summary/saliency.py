"""Saliency: what is lost with a channel where only comparisons within its group are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrobnn.channels.compounding import NEVER

if TYPE_CHECKING:
    from pyrobnn.channels.parts import ChannelGroup, Member


FREE_NATS = 1e-3  # a channel that costs less is worth nothing
FREE_SHARE = 1e-3  # of a cost that is usual in the group: the same for costs without a unit


def costs_nothing(cost: Tensor, unit: str) -> Tensor:
    """Which channels of a group their own score calls worthless.

    In nats that is an absolute line. A share is small where a group is wide: there the line is relative to the
    costlier channels of the group.

    Args:
        cost: `[channels]`, of one group.
        unit: `"nats"` or `"share"`.

    >>> costs_nothing(torch.tensor([2.0, 1e-4, 0.5]), "nats").tolist()
    [False, True, False]
    >>> costs_nothing(torch.full((5000,), 1 / 5000), "share").any().item()
    False
    """
    if unit == "nats" or not len(cost):
        return cost < FREE_NATS
    usual = cost.double().quantile(0.9)
    return (cost <= FREE_SHARE * usual) & (cost < cost.max())


def producers(group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]]) -> list[Member]:
    """The members that are rows of filters (weights of convolutions and linear layers, no biases)."""
    return [member for member in group.members if member.role == "out" and len(shapes[member.tensor]) >= 2]


def share_of_group(score: Tensor, group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """What each channel has of its group's summed score, once for every layer that produces the group's channels.

    A stage of a residual net loses a part of each of its blocks with a channel. How such losses add up is the
    planner's part (:func:`~pyrobnn.channels.compounding.compounded`).

    Args:
        score: `[channels]`, not negative; free of units. Of scores that are all 0 no channel has anything.
        group: whose channels these are.
        shapes: of the network's tensors.
    """
    values = score.detach().double().cpu().clamp(max=NEVER)
    total = values.sum()
    share = values if total == 0 else values / total
    return (share * max(1, len(producers(group, shapes)))).float()


def log_evidence(loc: Tensor, scale: Tensor, prior_scale: Tensor | float) -> Tensor:
    """log p(0) − log q(0) for q = N(loc, scale²) and p = N(0, prior_scale²): the log evidence for not being 0.

    The Savage-Dickey ratio, the limit of Bayesian model reduction to a prior at exactly 0: ½ loc² / scale² −
    log(prior_scale / scale), elementwise. Negative: the data would be more probable without.

    Args:
        loc, scale: of the posterior, any shape.
        prior_scale: a number, or of the same shape.

    Returns:
        Nats, float64.

    >>> log_evidence(torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.1]), 1.0) < 0
    tensor([ True, False])
    """
    mu, sigma = loc.double(), scale.double().clamp_min(1e-12)
    prior = torch.as_tensor(prior_scale, dtype=torch.float64).to(mu.device)
    return 0.5 * (mu / sigma).square() - torch.log(prior / sigma)
