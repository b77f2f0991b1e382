"""Muon for convolutional networks: updates of kernels with all singular values alike, plain SGD for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.inference.precision import cpu_has_bf16

# Odd quintic with a steep slope at zero that keeps [0, 1] near 1 (Jordan et al. 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)
# Rate of vectors and linear layers, in units of the rate of the kernels.
OTHERS = 5.0
# Least root mean square that a kernel is taken to have, so that one of zeros can move.
SMALLEST = 1e-4


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, kernel by kernel (Jordan et al. 2024, "Muon").

    A kernel `[out, in, h, w]` counts as a matrix `[out, in * h * w]`. Its Nesterov momentum is brought near to the
    closest semi-orthogonal matrix by Newton-Schulz steps, so that the few directions in which a cut kernel's gradient
    is large do not drown the others. The step has `lr` times the norm of the kernel: kernels before a BatchNorm have no
    scale of their own, and in trained networks they lie two orders of magnitude apart. (Ours; Jordan's code for
    CIFAR-10 resets the norms instead.) Groups with `orthogonal=False` take Nesterov steps of SGD.

    torch's own Muon (from 2.9) takes matrices only; this one takes kernels, and both kinds of group in one
    optimiser, so that checkpoints and cuts see a single state.

    Args:
        params: parameters or groups; a group may set `lr`, `momentum`, `weight_decay` and `orthogonal`.
        lr: learning rate; of kernels, the length of a step as a share of their norm.
        momentum: of both kinds of step.
        weight_decay: of SGD, in the gradient; kernels have none, as it would only scale what has no scale.
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
        own = {"orthogonal": orthogonal, "steps": steps}
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, **own})
        for group in self.param_groups:
            if group["orthogonal"] and any(p.dim() < 2 for p in group["params"]):
                raise ValueError("expected tensors of two or more dimensions in an orthogonal group, got a vector")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all gradients there are; kernels of one shape are orthogonalised together.

        As in torch's fused optimisers, gradients are divided by `grad_scale` and nothing moves where `found_inf` is 1,
        if these attributes are set.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, failed = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            momentum = group["momentum"]
            lr, decay = group["lr"], 0.0 if group["orthogonal"] else group["weight_decay"]
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: Any = [p.grad for p in params]
            if scale is not None:
                grads = torch._foreach_div(grads, scale)
            if decay:
                grads = torch._foreach_add(grads, params, alpha=decay)
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers: Any = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, grads)
            updates: Any = torch._foreach_add(grads, buffers, alpha=momentum)
            steps = _kernel_steps(params, updates, group["steps"]) if group["orthogonal"] else updates
            torch._foreach_mul_(steps, -lr)
            if failed is not None:
                steps = [torch.where(failed > 0, 0.0, step) for step in steps]
            torch._foreach_add_(params, steps)
        return loss


def _kernel_steps(kernels: list[Tensor], updates: list[Tensor], steps: int) -> list[Tensor]:
    """Orthogonalised updates, each of the norm of its kernel; one stack for all of a shape."""
    found: list[Tensor] = list(updates)
    by_shape: dict[torch.Size, list[int]] = {}
    for k, update in enumerate(updates):
        by_shape.setdefault(update.shape, []).append(k)
    for shape, places in by_shape.items():
        matrices = torch.stack([updates[k].reshape(shape[0], -1) for k in places])
        moved = orthogonalised(matrices, steps)
        norms = torch.stack([kernels[k].norm() for k in places]).clamp_min(SMALLEST * shape.numel() ** 0.5)
        moved = moved * (norms / moved.norm(dim=(1, 2)).clamp_min(1e-7))[:, None, None]
        for k, one in zip(places, moved.unbind(), strict=True):
            found[k] = one.reshape(shape)
    return found


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix (or a stack of them) with the same singular vectors and singular values of about 1.

    From 0.6 to 1.3 for all but the smallest.
    In bfloat16 where the processor has it: the iteration corrects its own rounding.
    """
    native = matrix.device.type != "cpu" or cpu_has_bf16()
    x = matrix.to(torch.bfloat16) if native else matrix
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def muon_groups(weights: Sequence[Tensor], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of a network: kernels that mix channels are orthogonalised, the rest takes SGD.

    Matrices of linear layers are left to SGD too, as the last one should be: its rows are classes.
    """
    kernels = [p for p in weights if p.dim() > 2 and p.size(1) > 1]
    chosen = {id(p) for p in kernels}
    others = [p for p in weights if id(p) not in chosen]
    matrices, vectors = [p for p in others if p.dim() > 1], [p for p in others if p.dim() <= 1]
    rest = {"peak": OTHERS * lr, "orthogonal": False}
    return [
        {"params": kernels, "peak": lr, "weight_decay": 0.0, "orthogonal": True},
        {"params": matrices, "weight_decay": weight_decay, **rest},
        {"params": vectors, "weight_decay": 0.0, **rest},
    ]
