"""Mixup distillation: distillation from the dense network on convex combinations of training images.

A compact network soon fits the labels of the training images, and then learns little more from them. For a mixture of
two images only the dense network gives a target, and no mixture is seen twice. Mixup is due to Zhang et al. (2018), the
teacher's output as the target of a mixed image to Beyer et al. (2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrobnn.inference.terms import Distillation, Step
from pyrobnn.nets.statistics import copied_statistics


class MixupDistillation(Distillation):
    """weight * T^2 * KL(teacher_T || student_T) on blends of the batch's images, half as many as it has images.

    The student is a plain network (no latent sites) in training mode; its running statistics stay those of the
    images themselves. Batches of fewer than four images add nothing. Arguments as for
    :class:`~pyrobnn.inference.terms.Distillation`; the likelihood keeps all of its own.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weight: float = 0.7,
        temperature: float = 4.0,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(teacher, weight, temperature, autocast)
        self.nll_weight = 1.0

    def __call__(self, step: Step) -> Tensor:
        if len(step.x) < 4:  # no statistics of a single blend
            return step.x.new_zeros(())
        x = mixup(step.x)
        net = step.model.net
        return self.divergence(self.teacher_output(x), step.model.call_net(net, copied_statistics(net, {}), x))


def mixup(x: Tensor) -> Tensor:
    """Each image of a batch `[N, ...]` at most once: `[N // 2, ...]`, of two each, in a uniform proportion.

    Uses the global RNG.

    >>> mixup(torch.stack([torch.zeros(2, 4, 4), torch.ones(2, 4, 4)])).shape
    torch.Size([1, 2, 4, 4])
    """
    half = len(x) // 2
    share = torch.rand(half, *[1] * (x.dim() - 1), device=x.device)
    return torch.lerp(x[:half], x[half : 2 * half], share)
