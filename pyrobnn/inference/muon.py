"""Muon for convolutional networks: updates of kernels with all singular values alike, plain SGD for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.inference.precision import cpu_has_bf16

# Odd quintic with a steep slope at zero that keeps [0, 1] near 1 (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
# Root mean square of an update at rate 1, whatever the kernel's shape (Liu et al. 2025, "match RMS of AdamW").
RMS = 0.2
# Rate of vectors and linear layers, in units of the rate of the kernels.
OTHERS = 5.0


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, kernel by kernel (Jordan et al. 2024, "Muon").

    A kernel `[out, in, h, w]` counts as a matrix `[out, in * h * w]`. Its Nesterov momentum is brought near to the
    closest semi-orthogonal matrix by Newton-Schulz steps, so that the few directions in which a cut kernel's gradient
    is large do not drown the others, and scaled to a root mean square of `0.2 * lr`. Weight decay is decoupled.
    Groups with `orthogonal=False` take Nesterov steps of SGD, with its usual decay in the gradient.

    torch's own Muon (from 2.9) takes matrices only; this one takes kernels, and both kinds of group in one
    optimiser, so that checkpoints and cuts see a single state.

    Args:
        params: parameters or groups; a group may set `lr`, `momentum`, `weight_decay` and `orthogonal`.
        lr: learning rate.
        momentum: of both kinds of step.
        weight_decay: share of a kernel that goes per unit of learning rate and step.
        orthogonal: whether the group's tensors are orthogonalised.
        steps: Newton-Schulz iterations.

    Raises:
        ValueError: an orthogonal group with a tensor of fewer than two dimensions.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        orthogonal: bool = True,
        steps: int = 5,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": orthogonal, "steps": steps
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            if group["orthogonal"] and any(p.dim() < 2 for p in group["params"]):
                raise ValueError("expected tensors of two or more dimensions in an orthogonal group, got a vector")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all gradients there are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad if group["orthogonal"] or not decay else p.grad.add(p, alpha=decay)
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].mul_(momentum).add_(grad)
                update = grad.add(buffer, alpha=momentum)
                if group["orthogonal"]:
                    matrix = update.reshape(len(update), -1)
                    scale = RMS * max(matrix.shape) ** 0.5
                    p.mul_(1 - lr * decay).add_(orthogonalised(matrix, group["steps"]).view_as(p), alpha=-lr * scale)
                else:
                    p.add_(update, alpha=-lr)
        return loss


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix with the same singular vectors and singular values of about 1 (0.7 to 1.2 for all but the smallest).

    In bfloat16 where the processor has it: the iteration corrects its own rounding.
    """
    quick = matrix.device.type != "cpu" or cpu_has_bf16()
    x = matrix.to(torch.bfloat16) if quick else matrix
    tall = x.size(0) > x.size(1)
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def muon_groups(weights: Sequence[Tensor], lr: float, weight_decay: float, momentum: float) -> list[dict[str, Any]]:
    """Parameter groups of a network: kernels that mix channels are orthogonalised, the rest takes SGD.

    Matrices of linear layers are left to SGD too, as the last one should be (its rows are classes), at a decay that
    shrinks them as fast as the kernels.
    """
    kernels = [p for p in weights if p.dim() > 2 and p.size(1) > 1]
    chosen = {id(p) for p in kernels}
    others = [p for p in weights if id(p) not in chosen]
    rate = OTHERS * lr
    return [
        {"params": kernels, "peak": lr, "weight_decay": weight_decay, "orthogonal": True},
        {
            "params": [p for p in others if p.dim() > 1],
            "peak": rate,
            "weight_decay": weight_decay * (1 - momentum) / OTHERS,
            "orthogonal": False,
        },
        {"params": [p for p in others if p.dim() <= 1], "peak": rate, "weight_decay": 0.0, "orthogonal": False},
    ]
