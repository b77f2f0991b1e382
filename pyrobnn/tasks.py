"""`Task`: the likelihood, the metric and the distillation loss of a kind of target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.errors import ConfigError
from pyrobnn.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, PixelCategorical
from pyrobnn.metrics.metric import Metric, accuracy, f1, mean_iou, rmse
from pyrobnn.metrics.scores import class_logits

if TYPE_CHECKING:
    from pyrobnn.data import Data

#: `(teacher's output, student's output, targets, temperature)` to a mean per example, in nats.
Divergence = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def softened_classes(teacher: Tensor, output: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher_T || student_T) of class probabilities (Hinton, Vinyals and Dean 2015), a mean over positions.

    Outputs `[B, K]` or per pixel `[B, K, H, W]`, where pixels without a class count too.
    """
    target = F.log_softmax(class_logits(teacher) / temperature, 1)
    student = F.log_softmax(class_logits(output.float()) / temperature, 1)
    return temperature**2 * F.kl_div(student, target, log_target=True, reduction="none").sum(1).mean()


def softened_labels(teacher: Tensor, output: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 KL of each label's probability, summed over the labels `[B, K]`."""
    p = torch.sigmoid(teacher / temperature)
    ours, theirs = output.float() / temperature, teacher / temperature
    each = p * (F.logsigmoid(theirs) - F.logsigmoid(ours)) + (1 - p) * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return temperature**2 * each.sum(1).mean()


def squared_error(teacher: Tensor, output: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """KL of two normals around the outputs, whose variance is that of the teacher's residuals; T does nothing."""
    count = len(targets)
    residuals = targets.reshape(count, -1) - teacher.reshape(count, -1)
    variance = residuals.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    gap = output.float().reshape(count, -1) - teacher.reshape(count, -1)
    # A teacher that fits its data exactly would give this term an infinite weight, so the variance of its outputs bounds it.
    least = 1e-4 * teacher.var(unbiased=False) + torch.finfo(torch.float32).eps
    return 0.5 * gap.square().sum(1).mean() / torch.maximum(variance, least)


@dataclass(frozen=True)
class Task:
    """A kind of target.

    Attributes:
        name: For the report.
        likelihood: Of the targets, from the network's output.
        metric: By which networks are compared.
        divergence: How a teacher's output is compared with the student's in distillation; None: no distillation.
        call: How the network is called for a batch, where that is not `net(batch)`: several inputs, outputs in
            containers. `call(net, batch)` returns the output tensor.
    """

    name: str
    likelihood: Likelihood
    metric: Metric
    divergence: Divergence | None = None
    call: Callable[[Any, Any], Tensor] | None = field(default=None)

    @property
    def names_classes(self) -> bool:
        """One class per image: accuracy is the figure, and the report says more."""
        return self.metric.name == "accuracy"

    @property
    def softens(self) -> bool:
        """The output are logits of one class per image, which a teacher can soften."""
        return isinstance(self.likelihood, Categorical)


def classification() -> Task:
    """One class per image: logits `[B, K]`, labels `[B]`."""
    return Task("classification", Categorical(), accuracy(), softened_classes)


def segmentation(classes: int, observations: float = 1.0) -> Task:
    """One class per pixel: logits `[B, K, H, W]`, classes `[B, H, W]`, -100 for none."""
    return Task("segmentation", PixelCategorical(observations), mean_iou(classes), softened_classes)


def multilabel() -> Task:
    """Several labels per image: logits `[B, K]`, targets `[B, K]` of 0 and 1."""
    return Task("multilabel", Bernoulli(), f1(), softened_labels)


def regression(scale: float | None = None) -> Task:
    """Numbers per image `[B, D]`, with Gaussian noise of a given scale or of that of the residuals."""
    return Task("regression", Gaussian(scale), rmse(), squared_error)


def task_for(data: Data, asked: str | Task | None = None) -> Task:
    """The task of a data set, or the one asked for.

    Raises:
        ConfigError: An unknown name, or one that the targets of the data do not fit.
    """
    if isinstance(asked, Task):
        return asked
    kind = target_kind(data)
    if asked is not None and asked != kind:
        raise ConfigError(
            f"the data has targets for {kind}, got task={asked!r}: give load_data that task, or leave it out"
        )
    if kind == "segmentation":
        return segmentation(data.num_classes)
    return {"classification": classification, "multilabel": multilabel, "regression": regression}[kind]()


def target_kind(data: Data) -> str:
    """What the targets are: as the data says, unless they were replaced by others since."""
    labels = data.train.labels
    if data.task in ("classification", "segmentation") and labels.is_floating_point():
        return "regression"
    if data.task == "classification" and labels.ndim > 2:
        return "segmentation"
    return data.task
