"""Muon against singular value decompositions and torch's SGD."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.guides import NoLatents
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.muon import Muon, muon_groups, orthogonalised


@pytest.mark.parametrize("shape", [(16, 144), (64, 9), (7, 7), (1, 5)])
def test_singular_values_become_alike_and_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = torch.linalg.svdvals(orthogonalised(matrix))
    large = s > 0.05 * s.norm()
    assert float(found[: int(large.sum())].min()) > 0.6 and float(found.max()) < 1.3
    # In the basis of the matrix the result is all but diagonal.
    core = u.mT @ orthogonalised(matrix) @ vh.mT
    assert float((core - core.diagonal().diag()).abs().max()) < 0.05


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_step_of_a_kernel_is_a_share_of_its_norm(size: float) -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3) * size)
    before = kernel.detach().clone()
    kernel.grad = torch.randn_like(kernel) * 1e-4  # the size of a gradient does not matter
    Muon([kernel], lr=0.03, momentum=0.9, weight_decay=0.5).step()
    moved = kernel.detach() - before
    assert float(moved.norm() / before.norm()) == pytest.approx(0.03, rel=1e-3)
    assert float((moved * kernel.grad).sum()) < 0


def test_a_kernel_of_zeros_can_move() -> None:
    kernel = nn.Parameter(torch.zeros(2, 2, 1, 1))
    kernel.grad = torch.ones_like(kernel)
    Muon([kernel], lr=0.1).step()
    assert float(kernel.detach().abs().min()) > 0
    kernel.grad = torch.zeros_like(kernel)
    Muon([kernel], lr=0.1).step()
    assert bool(torch.isfinite(kernel.detach()).all())


def test_the_other_group_is_nesterov_sgd() -> None:
    torch.manual_seed(0)
    start = torch.randn(5, 3)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([{"params": [mine], "orthogonal": False, "weight_decay": 0.1}], lr=0.05, momentum=0.9)
    sgd = torch.optim.SGD([theirs], lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1)
    for _ in range(4):
        gradient = torch.randn(5, 3)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        sgd.step()
    torch.testing.assert_close(mine.detach(), theirs.detach())


def test_a_vector_cannot_be_orthogonalised() -> None:
    with pytest.raises(ValueError, match="two or more dimensions"):
        Muon([nn.Parameter(torch.zeros(3))])


def test_kernels_that_mix_channels_and_nothing_else_are_orthogonalised() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2)
    )
    kernels, matrices, vectors = muon_groups(list(net.parameters()), 0.01, 0.1)
    assert [tuple(p.shape) for p in kernels["params"]] == [(4, 3, 3, 3)] and kernels["orthogonal"]
    assert [tuple(p.shape) for p in matrices["params"]] == [(4, 1, 3, 3), (2, 4)]
    assert all(p.dim() == 1 for p in vectors["params"]) and len(vectors["params"]) == 5
    assert kernels["weight_decay"] == vectors["weight_decay"] == 0 and matrices["weight_decay"] == 0.1
    assert not matrices["orthogonal"] and not vectors["orthogonal"]


def test_fit_takes_it_and_learns() -> None:
    data = pb.load_data("digits")
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
    ]
    net = nn.Sequential(*layers, nn.Linear(8 * 16, 10))
    model = pb.BayesianModel(net, data_size=len(data.train))
    config = FitConfig(epochs=4, batch_size=32, optimizer="muon", lr=0.02, weight_decay=5e-4)
    result = pb.fit(model, NoLatents(), data, config=config, progress=False)
    losses = [row["nll"] for row in result.history]
    assert losses[-1] < 0.3 * losses[0] and result.history[-1]["valid_accuracy"] > 0.9
