"""What the removal of several channels of one group costs, from what each of them costs alone."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-3  # of a channel of average loss: what a group without channels counts as having left
NEVER = 1e30  # an infinite loss, as a number that can be added up


def compounded(losses: Tensor) -> Tensor:
    """What a channel costs when all channels of its group that cost less have gone before it.

    A loss is measured, or derived, with all other channels in place. Those that are left make up for less and less, and
    where a normalisation follows, it enlarges the error with the signal: with a share R of the group's summed loss S gone,
    what is lost next counts 1 / (1 − R) times. The first channels cost what they cost alone, and costs add up to
    −S log(1 − R). Spent as they are, the small losses of a wide group are no bound at all: VGG-16 at 60 % of the MACs
    kept 14 of 512 channels of one layer, and 64 % of the images right instead of 86 %.

    A group whose losses are shares of 1 so costs the log of what is left of it, in one round or in many. The last channel
    leaves nothing, whose logarithm is no cost to add up: what is left counts as :data:`LEAST` of an average channel at
    the least, so that the last channel costs the more, the more of its group it is.

    Args:
        losses: `[channels]`, of one group; what is below 0 counts as 0.

    Returns:
        `[channels]`, float64, in the unit and the order of the losses.

    >>> [round(v, 3) for v in compounded(torch.tensor([1.0, 1.0])).tolist()]  # 2 log 2, then 2 log 1000
    [1.386, 13.816]
    >>> [round(v, 3) for v in compounded(torch.tensor([0.01, 9.0, 0.0])).tolist()]  # 9.01 log(9 / 0.0030033)
    [0.01, 72.127, 0.0]
    """
    values = losses.detach().double().cpu().clamp(0.0, NEVER)
    if not len(values) or not bool(values.any()):
        return values
    order = values.argsort(stable=True)
    ascending = values[order]
    rest = ascending.flip(0).cumsum(0).flip(0)
    least = LEAST * values.mean()
    # Sums of what comes after, not differences of sums, which lose the digits of small losses.
    after = torch.cat([rest[1:], rest.new_zeros(1)])
    cost = torch.empty_like(values)
    cost[order] = torch.where(
        after > least, torch.log1p(ascending / after.clamp_min(1e-300)), (rest.clamp_min(least) / least).log()
    )
    return cost * values.sum()
