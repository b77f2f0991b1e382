"""Widths in the deterministic phase of Turbo-VBI: the optimum under the curvature of a likelihood that is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.guides.turbo import TurboGuide
from pyrobnn.inference.callbacks import FitState, assign
from pyrobnn.inference.turbo_updates import TurboUpdates
from pyrobnn.inference.turbo_widths import EVERY, PointWidths
from pyrobnn.likelihoods import Gaussian as GaussianLikelihood
from pyrobnn.priors.turbo import Turbo


def regression(batches: int, batch: int) -> tuple[Any, TurboGuide, PointWidths, torch.Tensor]:
    """A linear network at its own answer, its gradients over batches of noisy targets; scale of each input."""
    torch.manual_seed(0)
    size, scale = torch.tensor([0.1, 1.0, 5.0]), 0.5
    net = nn.Sequential(nn.Linear(3, 2, bias=False))
    model = pb.BayesianModel(net, Turbo(), data_size=batches * batch, likelihood=GaussianLikelihood(scale))
    guide, widths = TurboGuide(model), PointWidths()
    guide.point = True
    (mean,) = guide.loc.values()
    for step in range(1, EVERY * batches + 1):
        x = size * torch.randn(batch, 3)
        y = x @ mean.detach().T + scale * torch.randn(batch, 2)
        mean.grad = None
        likelihood = GaussianLikelihood(scale)(x @ mean.T).log_prob(y).mean()
        kl = 0.5 * (guide.shape["0|weight"] / guide.rate["0|weight"] * mean.square()).sum()
        (-likelihood + 0.3 * kl / model.data_size).backward()
        model.last_batch = (x, y)
        widths.on_batch_end(FitState(model, guide, step=step, kl_weight=0.3))
    return model, guide, widths, size / scale


def test_widths_are_the_optimum_of_a_known_curvature() -> None:
    model, guide, widths, ratio = regression(batches=200, batch=25)
    update = widths.on_epoch_end(FitState(model, guide, epoch=1, kl_weight=0.3))
    assert update is not None
    for name, value in update.tensors.items():
        assign({"guide": guide}, name, value)
    curvature = model.data_size * ratio.square().expand(2, 3)
    exact = 0.3 / (curvature + 0.3 * guide.shape["0|weight"] / guide.rate["0|weight"])
    torch.testing.assert_close((2 * guide.log_scale["0|weight"].detach()).exp(), exact, rtol=0.25, atol=0)
    assert (
        widths.on_epoch_end(FitState(model, guide, epoch=2, kl_weight=0.3)) is None
    )  # each epoch has its own gradients


def test_a_state_goes_on_where_it_was() -> None:
    model, guide, widths, _ = regression(batches=3, batch=5)
    resumed = PointWidths()
    resumed.load_state_dict(widths.state_dict())
    one, two = (w.on_epoch_end(FitState(model, guide, epoch=1, kl_weight=0.3)) for w in (widths, resumed))
    assert one is not None and two is not None
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_a_fit_moves_widths_in_its_point_phase_and_goes_on_from_there() -> None:
    data = pb.load_data("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = pb.BayesianModel(net, Turbo(), data_size=len(data.train))
    guide = TurboGuide(model)
    before = guide.log_scale["1|weight"].detach().clone()
    events = [PointWidths(), TurboUpdates(per_epoch=4, point_epochs=1, learn=False)]
    result = pb.fit(model, guide, data, epochs=1, callbacks=events, precision="fp32", progress=False)
    after = result.guide.log_scale["1|weight"].detach()
    assert not result.guide.point and bool((after != before).all())
    # The pixels at the rim are always dark: their weights have no curvature, and widths of the prior.
    images = torch.cat([x for x, _ in data.train.batches(200)]).flatten(1)
    seen = images.var(0) > 0.3 * images.var(0).median()
    assert float(after[:, seen].median()) < float(after[:, ~seen].median())


def test_other_guides_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=10)
    with pytest.raises(ConfigError, match="TurboGuide"):
        PointWidths().on_batch_end(FitState(model, MeanField(model), step=EVERY))
