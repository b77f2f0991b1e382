"""The combined L1 norm as a prior: what the model sees, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro.poutine as poutine
import pytest
import torch

import pyrobnn as pb
from pyrobnn.errors import ConfigError
from pyrobnn.priors import CappedL1


def test_the_site_is_the_penalty() -> None:
    """-log p of the model's sites is the combined norm plus a constant."""
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    model = pb.BayesianModel(net, CappedL1(0.2, mix=0.25, cap=2.0), data_size=10)
    sites = model.sites()
    assert set(sites) == {"conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"}
    prior = sites["fc1.weight"]["fn"]
    w = torch.randn(64, 128)
    penalty = (0.75 * w.abs() + 0.25 * w.abs().clamp_max(0.4)).sum() / 0.2
    difference = prior.log_prob(torch.zeros_like(w)) - prior.log_prob(w)
    assert float(difference) == pytest.approx(float(penalty), rel=1e-5)
    trace = poutine.trace(model).get_trace(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))
    assert trace.nodes["conv1.weight"]["value"].shape == (16, 1, 3, 3)


def test_fan_in_gives_the_variance_of_he() -> None:
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    model = pb.BayesianModel(net, CappedL1("fan_in", mix=0.0), data_size=10)
    variance = model.sites()["conv2.weight"]["fn"].base_dist.variance
    assert torch.allclose(variance, torch.tensor(2 / (16 * 9)), rtol=1e-5)


def test_its_kl_is_closed_form_and_trains() -> None:
    data = pb.load_data("digits")
    data = replace(data, train=data.train.take(200))
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    model = pb.BayesianModel(net, CappedL1(), data_size=200)
    guide = pb.guides.MeanField(model)
    x, y = next(iter(data.train.batches(32)))
    parts = pb.ELBO().parts(model, guide, x, y)
    assert parts.closed_form == set(parts.kl) == set(model.sites())
    before = float(parts.total_kl(parts.nll).detach())
    pb.fit(model, guide, data, epochs=2, lr=1e-2, kl_schedule=10.0, progress=False)
    after = pb.ELBO().parts(model, guide, x, y)
    assert float(after.total_kl(after.nll).detach()) < before


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"mix": 1.0}, "mix"),
        ({"mix": -0.1}, "mix"),
        ({"cap": 0.0}, "cap"),
        ({"cap": math.inf}, "cap"),
        ({"scale": 0.0}, "scale"),
    ],
)
def test_bad_settings_are_refused(settings, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        CappedL1(**settings)


def test_fan_in_in_a_mapping_is_fan_in() -> None:
    weight = torch.zeros(4, 50)
    alone = CappedL1("fan_in").distribution("a.weight", weight)
    mapped = CappedL1({"b*": 0.2, "*": "fan_in"})
    assert torch.equal(mapped.distribution("a.weight", weight).scale, alone.scale)
    assert float(mapped.distribution("b.weight", weight).scale.max()) == pytest.approx(0.2)
