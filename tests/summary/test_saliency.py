"""Removal costs: logs of what is left, in proportion between layers."""

from __future__ import annotations

import math

import pytest
import torch

import pyrobnn as pb
from pyrobnn.summary.saliency import left_share


def test_cost_is_the_log_of_what_is_left() -> None:
    score = torch.tensor([3.0, 1.0, 0.5, 5.5])
    cost = left_share(score)
    order = score.argsort()
    for gone in range(1, 4):
        left = float(score[order[gone:]].sum()) / 10.0
        assert float(cost[order[:gone]].sum()) == pytest.approx(-torch.tensor(left).log().item(), rel=1e-5)
    assert bool((cost[order].diff() > 0).all())
    # The same in two rounds (but the last channel's, which depends on who is there), and in other units.
    assert torch.allclose(left_share(score[order[1:]])[:-1], cost[order[1:-1]], rtol=1e-5)
    assert torch.allclose(left_share(100 * score), cost)
    assert bool(torch.isfinite(left_share(torch.zeros(3))).all())


def test_the_last_channel_costs_what_it_is_of_its_group() -> None:
    """Not one constant for all groups: the more a channel is above the average, the more is lost with it."""
    alike, lone = left_share(torch.ones(6)), left_share(torch.tensor([0.01] * 5 + [5.0]))
    assert float(alike[-1]) == pytest.approx(math.log(1 / 1e-3), rel=1e-5)
    assert float(lone[-1]) == pytest.approx(math.log(5.0 / (1e-3 * 5.05 / 6)), rel=1e-5) and float(lone[-1]) > float(
        alike[-1]
    )
    for score in (torch.tensor([2.0]), torch.zeros(1), torch.tensor([1e-30, 1.0]), torch.zeros(0)):
        assert bool(torch.isfinite(left_share(score)).all())
    # Whatever the scores are, no channel costs less than a smaller one, and the last one most.
    cost = left_share(torch.tensor([1.0, 1e-12, 1e-6, 1e-6]))
    assert bool((cost.sort().values[:-1] <= cost[0]).all()) and int(cost.argmax()) == 0


def test_equal_scores_keep_layers_in_proportion() -> None:
    """A budget must not empty one layer while its neighbour stays whole."""
    net = pb.nets.build("lenet5", in_channels=1, image_size=28)
    table = pb.channel_groups(net, torch.randn(2, 1, 28, 28))
    costs = {group.name: left_share(torch.ones(group.channels)) for group in table}
    plan = pb.plan_for_budget(costs, table, target_macs=0.25)
    assert 0.3 < len(plan.keep["conv1"]) / 20 < 0.6 and 0.25 < len(plan.keep["conv2"]) / 50 < 0.6


def test_weight_posteriors_cost_every_producer() -> None:
    """A stage of ResNet-20 is made by its stem and its three blocks, the inside of a block by one layer."""
    net = pb.nets.build("resnet20", in_channels=3, image_size=32)
    table = pb.channel_groups(net, torch.randn(2, 3, 32, 32))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=10, groups=table)
    for guide in (pb.guides.MeanField(model), pb.guides.NoLatents()):
        makers = {}
        for name, summary in pb.summarize(model, guide, draws=0).channels.items():
            score, costs = summary.snr.double().square(), summary.nats.double()
            # All but the best channel gone: what the removals cost adds up to the log of what is left.
            best = score.argmax()
            makers[name] = float(costs.sum() - costs[best]) / float((score.sum() / score[best]).log())
        found = sorted(round(value, 2) for value in makers.values())
        assert found == [1.0] * 9 + [3.0, 3.0, 4.0], makers
