"""Out-of-distribution distillation: a term that keeps the compact network as uncertain as the dense one away from the data.

The likelihood constrains a network on images like those of the training set only. A compact network whose posterior was
fitted to them alone is as accurate as the dense one on test images, but more confident on images of none of the classes.
This term therefore also compares both networks on smooth random patterns. It is ours; outlier exposure (Hendrycks,
Mazeika and Dietterich 2019) is similar, with real outliers and a uniform target.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn

from pyrobnn.inference.terms import Distillation, Step
from pyrobnn.nets.calling import eval_mode


class OutOfDistributionDistillation(Distillation):
    """weight * T^2 * KL(teacher_T || student_T) on images that are none, under a draw of the posterior.

    LeNet-5 on MNIST at a tenth of its MACs, 3 epochs of a posterior, AUROC of the entropy against grey CIFAR-10
    training images: 0.984 without this term, 0.9999 with it (dense network 0.9999); against rotated digits 0.976
    and 0.976 (dense 0.959). At weight 0.1 the latter falls to 0.968, with patterns blended into digits to 0.974;
    blends of two digits gave 0.996 and 0.965, distillation on the data themselves 0.977 and 0.973; KL weights up
    to 1 changed nothing.

    Args:
        teacher: a trained network, copied, used in eval mode.
        weight: factor on the term, in [0, 1]; the likelihood keeps all of its own.
        temperature: T, above 0.
        autocast: dtype of the teacher's pass, None for fp32.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weight: float = 0.02,
        temperature: float = 2.0,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(teacher, weight, temperature, autocast)
        self.capturable = False  # the grid's size is drawn on the host
        self.nll_weight = 1.0

    def __call__(self, step: Step) -> Tensor:
        x = smooth_patterns(step.x)
        return self.divergence(self.teacher_output(x), output_at(step, x))


def smooth_patterns(x: Tensor) -> Tensor:
    """Images of the same shape and range as a batch `[N, C, H, W]` that show none of its classes.

    Smooth patterns: uniform noise on a coarse grid (the same grid for the batch, from 2x2 to half the image's
    size), interpolated. Uses the global RNG.

    >>> batch = torch.rand(4, 1, 8, 8)
    >>> made = smooth_patterns(batch)
    >>> made.shape == batch.shape, bool(made.amax() <= batch.amax()), bool(made.amin() >= batch.amin())
    (True, True, True)
    """
    size = [int(torch.randint(2, max(3, side // 2 + 1), ())) for side in x.shape[2:]]
    low, high = (f(x, dim=(0, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    coarse = torch.rand(*x.shape[:2], *size, device=x.device)
    pattern = low + (high - low) * F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
    return pattern.contiguous(memory_format=torch.channels_last)


def output_at(step: Step, x: Tensor) -> Tensor:
    """The network's output for other images under a fresh draw of the guide, with gradients.

    In evaluation mode: BatchNorm statistics are those of the data, and stay so.
    """
    with poutine.block():
        trace = poutine.trace(step.guide).get_trace(step.x, step.y)
        values = poutine.replay(step.model.values, trace=trace)()
    with eval_mode(step.model.net) as net:
        return step.model.call_net(net, values, x)
