"""What each channel has of its group, where scores have no unit."""

from __future__ import annotations

import torch

import pyrobnn as pb
from pyrobnn.summary.saliency import costs_nothing, share_of_group


def test_weight_posteriors_cost_every_producer() -> None:
    """A stage of ResNet-20 is made by its stem and its three blocks, the inside of a block by one layer."""
    net = pb.nets.build("resnet20", in_channels=3, image_size=32)
    table = pb.channel_groups(net, torch.randn(2, 3, 32, 32))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=10, groups=table)
    for guide in (pb.guides.MeanField(model), pb.guides.NoLatents()):
        channels = pb.summarize(model, guide, draws=0).channels
        makers = {name: round(float(summary.nats.sum()), 2) for name, summary in channels.items()}
        assert sorted(makers.values()) == [1.0] * 9 + [3.0, 3.0, 4.0], makers
        for summary in channels.values():
            score = summary.snr.double().square()
            torch.testing.assert_close(
                (summary.nats / summary.nats.sum()).double(), score / score.sum(), rtol=1e-4, atol=0
            )


def test_a_group_without_scores_has_nothing_to_lose() -> None:
    net = pb.nets.build("lenet5", in_channels=1, image_size=28)
    table = pb.channel_groups(net, torch.randn(2, 1, 28, 28))
    share = share_of_group(torch.zeros(20), table["conv1"], table.facts.shapes)
    assert share.tolist() == [0.0] * 20
    # A channel without a score is free beside others; where all are alike none is.
    assert costs_nothing(torch.tensor([0.0, 0.4, 0.6]), "share").tolist() == [True, False, False]
    assert not bool(costs_nothing(torch.tensor([1.0]), "share").any())


def test_an_infinite_score_is_all_of_its_group_and_nan_is_passed_on() -> None:
    net = pb.nets.build("lenet5", in_channels=1, image_size=28)
    table = pb.channel_groups(net, torch.randn(2, 1, 28, 28))
    score = torch.ones(20)
    score[4] = torch.inf
    share = share_of_group(score, table["conv1"], table.facts.shapes)
    assert share[4] == 1.0 and bool((share[:4] > 0).all()) and float(share[:4].max()) < 1e-20
    score[4] = torch.nan
    assert bool(share_of_group(score, table["conv1"], table.facts.shapes).isnan().any())
