"""Losses of channels together, against the quadratic form itself, minimised over the factor of what is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from pyrobnn.criteria.joint import TRUSTED, joint_losses


def information(channels: int, seed: int) -> Tensor:
    """F of gradients that have a direction in common."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(200, channels, generator=generator, dtype=torch.float64)
    g = common * torch.rand(channels, generator=generator, dtype=torch.float64) + own
    return g.T @ g / 200


def counted(f: Tensor) -> np.ndarray:
    """What of F counts."""
    off = f - torch.diag(f.diagonal())
    return (TRUSTED * off.clamp_min(0) + torch.diag(f.diagonal())).numpy()


def loss(f: np.ndarray, gone: list[int]) -> float:
    """J: half the quadratic form, with the rest moved to where it is least."""
    direction, rest = np.zeros(len(f)), np.ones(len(f))
    direction[gone], rest[gone] = -1.0, 0.0
    if not rest.any():
        return 0.5 * float(direction @ f @ direction)
    best = minimize_scalar(lambda d: 0.5 * (direction + d * rest) @ f @ (direction + d * rest))
    return float(best.fun)


@pytest.mark.parametrize("seed", range(4))
def test_costs_are_the_increases_of_the_loss_cheapest_first(seed: int) -> None:
    f = information(7, seed)
    costs, trusted = joint_losses(f), counted(f)
    gone: list[int] = []
    before, last = 0.0, 0.0
    for channel in costs.argsort().tolist():
        after = {c: loss(trusted, [*gone, c]) for c in range(7) if c not in gone}
        assert after[channel] == pytest.approx(min(after.values()), rel=1e-6)
        last = max(last, after[channel] - before)  # no channel is cheaper than one that goes before it
        assert float(costs[channel]) == pytest.approx(last, rel=1e-4)
        gone.append(channel)
        before = after[channel]


def test_channels_with_nothing_in_common_cost_what_they_cost_alone() -> None:
    own = torch.tensor([3.0, 0.5, 8.0, 0.0])
    assert torch.equal(joint_losses(torch.diag(own)), 0.5 * own.double())
    apart = torch.diag(own) - 0.1 * (1 - torch.eye(4))  # those that cancel are no free pair
    assert torch.equal(joint_losses(apart), 0.5 * own.double())


def test_many_alike_cost_more_than_many_that_differ() -> None:
    """100 channels of one direction: most of them together cost more than the sum of each alone."""
    alike, differ = joint_losses(torch.ones(100, 100)), joint_losses(torch.eye(100))
    assert float(alike.sort().values[:80].sum()) > 3 * float(differ.sort().values[:80].sum())
    assert float(alike.sort().values[0]) < 0.5  # the first one is made up for by the rest


def test_the_order_survives_float32() -> None:
    costs = joint_losses(torch.ones(600, 600))
    assert torch.equal(costs.float().argsort(stable=True), costs.argsort(stable=True))
    assert len(costs.float().unique()) == 600
