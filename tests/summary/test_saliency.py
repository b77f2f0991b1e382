"""Removal costs: logs of what is left, in proportion between layers."""

from __future__ import annotations

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
    # The same in two rounds, and in other units.
    assert torch.allclose(left_share(score[order[2:]]), cost[order[2:]], rtol=1e-5)
    assert torch.allclose(left_share(100 * score), cost)
    assert bool(torch.isfinite(left_share(torch.zeros(3))).all())


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
