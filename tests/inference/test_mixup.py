"""What the dense network says between the images."""

from __future__ import annotations

import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.guides import NoLatents
from pyrobnn.inference.mixup import MixupDistillation, mixup
from pyrobnn.inference.terms import Step


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)]
    return nn.Sequential(*layers)


def step(size: int) -> Step:
    model = pb.BayesianModel(small(0), data_size=size)
    model.train()
    torch.manual_seed(1)
    x, y = torch.randn(size, 2, 8, 8), torch.arange(size) % 3
    return Step(x, y, torch.zeros(size, 3), model, NoLatents())


def test_blends_lie_between_two_images_each_used_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 2, 4, 4)
    made = mixup(x)
    assert made.shape == (4, 2, 4, 4)
    shares = []
    for k in range(4):
        first, second = x[k].flatten(), x[4 + k].flatten()
        share = (made[k].flatten() - first) @ (second - first) / (second - first).square().sum()
        assert torch.allclose(made[k].flatten(), first + share * (second - first), atol=1e-5)
        shares.append(float(share))
    assert all(0 <= share <= 1 for share in shares) and len(set(shares)) == 4


def test_proportions_are_uniform() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.zeros(20_000, 1), torch.ones(20_000, 1)])
    shares = mixup(x).flatten().sort().values
    assert (shares - torch.linspace(0, 1, 20_000)).abs().max() < 0.015  # Kolmogorov-Smirnov, p < 0.001


def test_the_term_is_hintons_divergence_on_blends_with_batch_statistics() -> None:
    one, teacher = step(8), small(5)
    term = MixupDistillation(teacher, weight=0.2, temperature=3.0)
    before = {name: buffer.clone() for name, buffer in one.model.net.named_buffers()}
    torch.manual_seed(2)
    value = term(one)
    value.backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in one.model.net.named_buffers())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.model.net[0].parameters() if p.dim() > 1)
    torch.manual_seed(2)
    x = mixup(one.x)
    p, q = torch.softmax(teacher.eval()(x) / 3, -1), torch.softmax(one.model.net.train()(x) / 3, -1)
    assert torch.allclose(value, 0.2 * 9 * (p * (p / q).log()).sum(-1).mean(), rtol=1e-4)
    assert term.nll_weight == 1.0


def test_too_few_images_for_blends_add_nothing() -> None:
    assert MixupDistillation(small(5))(step(3)) == 0


def test_a_fit_with_it_comes_closer_to_the_teacher_between_images() -> None:
    data = pb.load_data("digits")
    torch.manual_seed(3)

    def fresh() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    config = pb.FitConfig(epochs=15, lr=3e-3, validate=False, seed=0)
    model = pb.BayesianModel(fresh(), data_size=len(data.train))
    pb.fit(model, NoLatents(), data, config=config, progress=False)
    teacher = model.net.eval()
    with torch.no_grad():
        for tensor in teacher[3].parameters():
            tensor.mul_(0.3)  # it is less sure than the labels would make a network
    between = mixup(torch.cat([x for x, _ in data.valid.batches(64)]))
    distance = {}
    for name, terms in {"alone": [], "taught": [MixupDistillation(teacher, 1.0, temperature=1.0)]}.items():
        torch.manual_seed(4)
        student = pb.BayesianModel(fresh(), data_size=len(data.train))
        pb.fit(student, NoLatents(), data, config=config, terms=terms, progress=False)
        with torch.no_grad():
            p, q = (net.eval()(between).softmax(-1) for net in (teacher, student.net))
        distance[name] = float((p - q).abs().sum(-1).mean())
    assert distance["taught"] < 0.8 * distance["alone"], distance
