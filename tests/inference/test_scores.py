"""Random scores against sums over all labels, and against labels that are drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pyro import distributions as dist
from torch import Tensor

from pyrobnn.inference.scores import random_target, score

LOGITS = torch.tensor([[9.0, 1.0, 0.0, -2.0], [0.3, -0.2, 0.1, 0.0]])  # sure, and not
DRAWS = 40_000


def second_moment(drawn: Tensor, at: Tensor) -> Tensor:
    """E_y[(e_y − p)(e_y − p)ᵀ], y of the softmax of `drawn`, p of that of `at`: a sum over all labels."""
    gaps = torch.eye(4)[None] - at.softmax(-1)[:, None]
    return torch.einsum("by,byi,byj->bij", drawn.softmax(-1), gaps, gaps)


def directions(drawn: Tensor, at: Tensor) -> Tensor:
    """`[draws, 2, 4]`: what scores have as gradients in the logits."""
    torch.manual_seed(0)
    logits = at.expand(DRAWS, 2, 4).clone().requires_grad_()
    there = dist.Categorical(logits=logits)
    target = random_target(dist.Categorical(logits=drawn.expand(DRAWS, 2, 4)), None if drawn is at else there)
    (found,) = torch.autograd.grad(score(there, target).sum(), logits)
    return found


def test_second_moments_are_those_of_labels() -> None:
    for drawn in (LOGITS, LOGITS / 4):
        found, exact = directions(drawn, LOGITS), second_moment(drawn, LOGITS)
        error = (torch.einsum("dbi,dbj->bij", found, found) / DRAWS - exact).abs()
        assert bool((error <= 0.03 * exact.abs().amax((1, 2), keepdim=True)).all())


def test_images_that_the_network_is_sure_of_speak_each_time() -> None:
    """Labels of a sure network are the same 999 times of 1000; a random direction has a mean square each time."""
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    torch.manual_seed(1)
    labels = torch.distributions.Categorical(logits=LOGITS).sample((DRAWS,))
    by_labels = ((F.one_hot(labels, 4) - LOGITS.softmax(-1)) @ weights).square()
    by_signs = (directions(LOGITS, LOGITS) @ weights).square()
    assert torch.allclose(by_signs.mean(0), by_labels.mean(0), rtol=0.15)
    spread = by_signs.std(0) / by_labels.std(0)
    assert float(spread[0]) < 0.2 and float(spread[1]) < 1.1


def test_targets_of_other_kinds_are_drawn() -> None:
    normal = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    target = random_target(normal)
    assert torch.equal(score(normal, target), normal.log_prob(target)) and target.shape == (3, 2)
    labels = torch.tensor([2, 0])
    density = dist.Categorical(logits=LOGITS)
    assert torch.equal(score(density, labels), density.log_prob(labels))
