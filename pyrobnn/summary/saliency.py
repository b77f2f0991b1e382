"""Saliency: the cost of removing a channel where only comparisons within its group are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
    >>> costs_nothing(left_share(torch.ones(5000)), "share").any().item()
    False
    """
    if unit == "nats" or not len(cost):
        return cost < FREE_NATS
    usual = cost.double().quantile(0.9).clamp_max(1.0)
    return (cost <= FREE_SHARE * usual) & (cost < cost.max())


def producers(group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]]) -> list[Member]:
    """The members that are rows of filters (weights of convolutions and linear layers, no biases)."""
    return [member for member in group.members if member.role == "out" and len(shapes[member.tensor]) >= 2]


def left_share(score: Tensor) -> Tensor:
    """What each channel's removal costs: the log of the share of the group's summed score that it leaves.

    Channels go in ascending order, so the k-th costs −log(1 − s_k / (s_k + all higher ones)). Costs add up
    to the log of what is left after any number of channels, in one round or in many. Shares of the
    *original* sum would make the last channels of a group as cheap as the first where scores are alike, as
    norms are: a budget then takes whole layers down to one channel (tried on LeNet-5).

    The last channel leaves nothing, whose logarithm is no cost to add up or to store. What is left counts as
    :data:`FREE_SHARE` of a channel of average score at the least, as little as a channel that is worth nothing: the
    last channel costs the more, the more of its group it is.

    Args:
        score: `[channels]`, not negative.

    >>> [round(v, 3) for v in left_share(torch.tensor([1.0, 1.0])).tolist()]   # log 2, then log 1000
    [0.693, 6.908]
    >>> round(float(left_share(torch.tensor([1.0, 9.0]))[1]), 3)               # log(9 / 0.005)
    7.496
    """
    values = score.detach().double().cpu()
    if not len(values):
        return values.float()
    order = values.argsort(stable=True)
    ascending = values[order]
    rest = ascending.flip(0).cumsum(0).flip(0)
    least = FREE_SHARE * values.mean()
    # Sums of what comes after, not differences of sums, which lose the digits of small scores.
    after = torch.cat([rest[1:], rest.new_zeros(1)])
    cost = torch.empty_like(values)
    cost[order] = torch.where(
        after > least, torch.log1p(ascending / after.clamp_min(1e-300)), (rest.clamp_min(least) / least).log()
    )
    return cost.nan_to_num(0.0).float()  # scores that are all 0 have nothing to lose


def removal_cost(score: Tensor, group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """:func:`left_share`, once for every layer that produces the group's channels.

    A stage of a residual net loses a part of each of its blocks with a channel.

    Args:
        score: `[channels]`, not negative; free of units.
        group: whose channels these are.
        shapes: of the network's tensors.
    """
    return left_share(score) * max(1, len(producers(group, shapes)))


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
