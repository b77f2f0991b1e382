"""Terms that are added to the loss beside the ELBO, each a mean per example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.data.split import Split
from pyrobnn.errors import ConfigError
from pyrobnn.io.processes import current
from pyrobnn.metrics.scores import class_logits
from pyrobnn.model import BayesianModel
from pyrobnn.nets.calling import output_of, set_mode
from pyrobnn.nets.replica import copy_net
from pyrobnn.tasks import Divergence


@dataclass
class Step:
    """The arguments of a term in one step: the batch, the model and guide, and the logits.

    `view` says which training images the batch holds (see :class:`~pyrobnn.data.split.Batch`), if it is known.
    """

    x: Tensor
    y: Tensor
    output: Tensor
    model: BayesianModel
    guide: Any
    view: Tensor | None = None


class Term(Protocol):
    """A scalar to add to the loss; `nll_weight` scales the likelihood beside it (1 leaves it alone)."""

    nll_weight: float

    def __call__(self, step: Step) -> Tensor:
        """The term for one batch, in nats per example."""


@torch.no_grad()
def teacher_output(teacher: nn.Module, x: Tensor, autocast: torch.dtype | None) -> Tensor:
    """A network's logits in fp32, its pass under autocast if a dtype is given."""
    with torch.autocast(x.device.type, autocast or torch.bfloat16, autocast is not None):
        return output_of(teacher, x).float()


def outputs_by_view(
    teacher: nn.Module, split: Split, autocast: torch.dtype | None, device: torch.device, batch_size: int = 256
) -> Tensor:
    """The logits of a network (in eval mode) for every view of a split: `[views, K]`, on the CPU.

    Processes that share a run take turns with the batches, and all of them get all logits.
    """
    processes, mine = current(), {}
    for number, x in enumerate(split.views(batch_size, device=device)):
        if number % processes.size == processes.rank:
            mine[number] = teacher_output(teacher, x, autocast).cpu()
    found = {number: part for theirs in processes.each(mine) for number, part in theirs.items()}
    return torch.cat([found[number] for number in sorted(found)])


class Distillation:
    """Cross-entropy against a teacher's softened outputs (Hinton, Vinyals and Dean 2015).

    The loss is (1 - weight) * NLL + weight * T^2 * KL(teacher_T || student_T).

    Args:
        teacher: a trained network, used in eval mode.
        weight: share of the distillation loss, in [0, 1].
        temperature: T, above 0.
        autocast: dtype of the teacher's pass, None for fp32.
        logits: the teacher's outputs by view, `[views, K]` (see :func:`outputs_by_view`). With them the teacher is not
            evaluated again: the target of a shifted image is the teacher's output for the unshifted one.
        compare: `(teacher's output, student's output, targets, temperature)` to a mean per example, for outputs that
            are no logits of classes (see :mod:`pyrobnn.tasks`).
        copy: False takes the teacher itself, and freezes it.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weight: float = 0.7,
        temperature: float = 4.0,
        autocast: torch.dtype | None = None,
        logits: Tensor | None = None,
        compare: Divergence | None = None,
        copy: bool = True,
    ) -> None:
        if not 0 <= weight <= 1 or temperature <= 0:
            raise ConfigError(f"distillation needs weight in [0, 1] and temperature > 0, got {weight}, {temperature}")
        self.teacher = set_mode(copy_net(teacher) if copy else teacher, False).requires_grad_(False)
        self.weight, self.temperature, self.autocast = weight, temperature, autocast
        self.logits, self.compare = logits, compare
        self.nll_weight = 1.0 - weight

    def __call__(self, step: Step) -> Tensor:
        if self.logits is None or step.view is None:
            target = self.teacher_output(step.x)
        else:
            target = self.logits[step.view.to(self.logits.device)].to(step.x.device)
        if self.compare is not None:
            return self.weight * self.compare(target, step.output, step.y, self.temperature)
        return self.divergence(target, step.output)

    def teacher_output(self, x: Tensor) -> Tensor:
        """The teacher's logits of these images."""
        return teacher_output(self.teacher, x, self.autocast)

    def divergence(self, teacher: Tensor, output: Tensor) -> Tensor:
        """weight * T^2 * KL(teacher_T || student_T), a mean over the images."""
        target = F.log_softmax(class_logits(teacher) / self.temperature, -1)
        student = F.log_softmax(class_logits(output.float()) / self.temperature, -1)
        divergence = F.kl_div(student, target, log_target=True, reduction="batchmean")
        return self.weight * self.temperature**2 * divergence


class LabelSmoothing:
    """Labels that are wrong with a small probability (Szegedy et al. 2016): (1 - share) * NLL + share * mean_k -log p_k.

    Args:
        share: of the labels' loss that pulls towards equal probabilities of all classes, in [0, 1).
        weight: of the labels in the whole loss: what other terms, such as distillation, leave them.

    Raises:
        ConfigError: a share outside its range.
    """

    def __init__(self, share: float = 0.1, weight: float = 1.0) -> None:
        if not 0 <= share < 1:
            raise ConfigError(f"label smoothing takes a share from 0 to below 1, got {share:g}")
        self.share, self.weight, self.nll_weight = share, weight, 1.0 - share

    def __call__(self, step: Step) -> Tensor:
        return -self.weight * self.share * F.log_softmax(class_logits(step.output.float()), 1).mean()
