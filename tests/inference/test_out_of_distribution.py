"""What the dense network says on images that are none."""

from __future__ import annotations

import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.guides import MeanField, NoLatents
from pyrobnn.inference.out_of_distribution import OutOfDistributionDistillation, output_at, smooth_patterns
from pyrobnn.inference.terms import Step
from pyrobnn.priors.gaussian import Gaussian


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)]
    return nn.Sequential(*layers)


def step(scale: float) -> Step:
    model = pb.BayesianModel(small(0), Gaussian("fan_in"), data_size=8)
    guide = MeanField(model, init_scale=scale)
    torch.manual_seed(1)
    x, y = torch.randn(8, 2, 8, 8), torch.arange(8) % 3
    return Step(x, y, torch.zeros(8, 3), model, guide)


def test_patterns_are_smooth_and_in_the_range_of_each_channel() -> None:
    torch.manual_seed(0)
    x = torch.rand(400, 2, 16, 12) * torch.tensor([1.0, 5.0]).view(1, 2, 1, 1) - 2
    made = smooth_patterns(x)
    assert made.shape == x.shape
    for channel in range(2):
        low, high = x[:, channel].min(), x[:, channel].max()
        assert low <= made[:, channel].min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < made[:, channel].max() <= high
    for axis in (2, 3):  # neighbours of white noise differ by twice the variance
        first, second = made.narrow(axis, 0, made.shape[axis] - 1), made.narrow(axis, 1, made.shape[axis] - 1)
        assert (first - second)[:, 0].square().mean() < 0.7 * made[:, 0].var()
    assert not torch.equal(made[0], made[1])


def test_an_answer_is_that_of_the_network_and_leaves_statistics_alone() -> None:
    one = step(1e-6)
    one.model.train()
    net, before = one.model.net, {k: v.clone() for k, v in one.model.net.state_dict().items()}
    x = torch.randn(8, 2, 8, 8)
    found = output_at(one, x)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training
    assert torch.allclose(found, net.eval()(x), atol=1e-3)
    wide = step(1.0)
    assert not torch.allclose(output_at(wide, x), output_at(wide, x), atol=0.1)  # a fresh draw each time


def test_the_term_is_hintons_divergence_and_keeps_the_likelihood_whole() -> None:
    one, teacher = step(1e-6), small(5)
    term = OutOfDistributionDistillation(teacher, weight=0.2, temperature=3.0)
    torch.manual_seed(2)
    value = term(one)
    torch.manual_seed(2)
    x = smooth_patterns(one.x)
    p, q = (torch.softmax(net.eval()(x) / 3, -1) for net in (teacher, one.model.net))
    assert torch.allclose(value, 0.2 * 9 * (p * (p / q).log()).sum(-1).mean(), rtol=1e-2)
    assert term.nll_weight == 1.0
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.guide.loc.values())


def test_a_fit_with_it_comes_closer_to_the_teacher_off_the_data() -> None:
    """Two networks that were trained apart are closer on patterns if one teaches the other there."""
    data = pb.load_data("digits")
    torch.manual_seed(3)

    def fresh() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    config = pb.FitConfig(epochs=15, lr=3e-3, validate=False, seed=0)
    model = pb.BayesianModel(fresh(), data_size=len(data.train))
    pb.fit(model, NoLatents(), data, config=config, progress=False)
    taught = model.net.eval()
    start = fresh()
    x = smooth_patterns(torch.cat([x for x, _ in data.valid.batches(64)]))

    def distance(terms: list[OutOfDistributionDistillation]) -> float:
        net = pb.BayesianNet.around(start, data_size=len(data.train)).fit(data, config, terms=terms, progress=False)
        with torch.no_grad():
            return float((net.mean_net()(x).softmax(-1) - taught(x).softmax(-1)).abs().sum(-1).mean())

    assert distance([OutOfDistributionDistillation(taught, weight=1.0)]) < 0.7 * distance([])
