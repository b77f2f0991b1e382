"""The loop: what it shows the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.data import Augment
from pyrobnn.guides import NoLatents
from pyrobnn.inference.terms import Step


class Watch:
    """A term that adds nothing and remembers the views of every step."""

    nll_weight = 1.0

    def __init__(self) -> None:
        self.views: list[Tensor] = []

    def __call__(self, step: Step) -> Tensor:
        assert step.view is not None
        self.views.append(step.view.clone())
        return step.output.new_zeros(())


def seen(seed: int, epochs: int) -> Tensor:
    """Whether each image was mirrored, per epoch: `[epochs, N]`."""
    data = pb.load_data("digits")
    data = replace(data, train=replace(data.train.take(90), augment=Augment(shift=1, flip=True)))
    watch = Watch()
    model = pb.BayesianModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data_size=90)
    pb.fit(model, NoLatents(), data, epochs=epochs, batch_size=16, seed=seed, terms=[watch], progress=False)
    views = torch.cat(watch.views).view(epochs, 90)
    mirrored = torch.zeros(epochs, 90, dtype=torch.bool)
    for epoch, view in enumerate(views):
        assert torch.equal((view // 2).sort().values, torch.arange(90))
        mirrored[epoch, view // 2] = (view % 2).bool()
    return mirrored


def test_every_image_shows_its_sides_in_turns() -> None:
    mirrored = seen(seed=0, epochs=3)
    assert torch.equal(mirrored[0], ~mirrored[1]) and torch.equal(mirrored[0], mirrored[2])
    assert 20 < int(mirrored[0].sum()) < 70  # about half of them in one epoch; five standard deviations are 24
    assert not torch.equal(mirrored[0], seen(seed=1, epochs=1)[0])


def test_a_site_weight_without_a_site_is_refused() -> None:
    data = pb.load_data("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=len(data.train))
    with pytest.raises(pb.ConfigError, match=r"'1.wieght', which is no site of the model: it has 1.weight"):
        pb.fit(model, pb.guides.MeanField(model), data, site_weights={"1.wieght": 0.5}, progress=False)
