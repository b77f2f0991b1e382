"""Random scores of a likelihood: what a Fisher information is the mean square of.

F = E_y[(∂ log p(y) / ∂θ)²] with labels y drawn from the network's own predictive distribution. Labels of a network that
is sure of them are a poor estimate: nearly all say nothing, and the rare other ones everything. For classes any direction
v in the space of the log-probabilities with E[v vᵀ] = E_y[(e_y − p)(e_y − p)ᵀ] has the same mean square, and with random signs ε

    v = √p ⊙ ε − p (√pᵀ ε)

every image says what it has to say. (The factor of the softmax's Hessian is that of Dangel, Kunstner and Hennig 2020; signs are
Hutchinson's.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical


def _signs(like: Tensor) -> Tensor:
    return torch.randint(0, 2, like.shape, device=like.device).to(like) * 2 - 1


@torch.no_grad()
def random_target(drawn: Any, at: Any | None = None) -> Tensor:
    """What `score` is asked for, so that its gradients have the second moment of those of log p(y).

    Args:
        drawn: the distribution of the labels y, one per example.
        at: the density p that is asked for, where that is another one (labels of softened outputs).

    Returns:
        For classes directions `[B, classes]`, which sum to 0; else drawn labels.
    """
    if not isinstance(drawn, Categorical):
        return drawn.sample()
    p = drawn.probs
    root = p.sqrt() * _signs(p)
    direction = root - p * root.sum(-1, keepdim=True)
    if at is not None:
        # y has another mean than p says: E[(e_y − p)(e_y − p)ᵀ] is the covariance and the square of what they differ by.
        direction = direction + _signs(p[..., :1]) * (p - at.probs)
    return direction


def score(density: Any, target: Tensor) -> Tensor:
    """`[B]`: log p of labels, or its change in a direction (:func:`random_target`), for each example."""
    if isinstance(density, Categorical) and target.is_floating_point():
        return (target * density.logits).sum(-1)
    return density.log_prob(target)
