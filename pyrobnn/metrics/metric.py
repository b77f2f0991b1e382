"""`Metric`: the figure by which networks of any task are compared, a function of means over examples.

Every metric here is a value of the mean of a few numbers per example, so that it streams, and so that examples can be
drawn again (bootstrap) without evaluating the network again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyrobnn.errors import ConfigError, DataError, NumericalError
from pyrobnn.metrics.evaluate import iter_logits
from pyrobnn.metrics.scores import class_logits

if TYPE_CHECKING:
    from pyrobnn.data.split import Split


@dataclass(frozen=True)
class Metric:
    """A figure with a name and a direction.

    Attributes:
        name: As in the report.
        statistics: What is averaged: ``(output [B, ...], targets [B, ...]) -> [B, S]``, floats.
        value: The figure, from the mean of the statistics over examples ``[..., S]``: ``[...]``.
        higher: Larger is better.
        share: A fraction of 1, so that differences are told in percentage points.
    """

    name: str
    statistics: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    higher: bool = True
    share: bool = True

    def gain(self, value: float) -> float:
        """The figure in the units of `max_drop` (points where it is a share), turned so that higher is better."""
        return (100 if self.share else 1) * value if self.higher else -(100 if self.share else 1) * value

    def score(self, value: float) -> float:
        """A hundredth of the gain: for accuracy the figure itself."""
        size = value if self.share else value / 100
        return size if self.higher else -size

    def figure(self, score: float) -> float:
        """The figure of a score."""
        size = score if self.higher else -score
        return size if self.share else 100 * size

    def words(self, value: float) -> str:
        """The figure for people.

        >>> accuracy().words(0.9871), rmse().words(0.25)
        ('98.71 %', '0.25')
        """
        return f"{100 * value:.2f} %" if self.share else f"{value:.4g}"

    def standard_error(self, statistics: Tensor, draws: int = 200) -> float:
        """Of the gain on examples with these statistics ``[N, S]``, by a bootstrap that is always the same."""
        values = self.value(resampled(statistics, draws, seed=0))
        return float(values.std()) * abs(self.gain(1.0))


def resampled(statistics: Tensor, draws: int, seed: int) -> Tensor:
    """Means of the statistics ``[N, S]`` over examples drawn again with replacement: ``[draws, S]``."""
    generator = torch.Generator().manual_seed(seed)
    count = len(statistics)
    rows = []
    for _ in range(draws):
        picked = torch.randint(count, (count,), generator=generator)
        weights = torch.bincount(picked, minlength=count).to(statistics.dtype)
        rows.append(weights @ statistics / count)
    return torch.stack(rows)


def measured(
    net: nn.Module,
    split: Split,
    metric: Metric,
    *,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
) -> tuple[float, Tensor]:
    """The figure of a plain network on a whole split, and the statistics of every example ``[N, S]`` (double, CPU).

    Settings as for :func:`~pyrobnn.metrics.evaluate.evaluate`.

    Raises:
        NumericalError: The network returns NaN or infinity.
        DataError: The split is empty.
    """
    parts = [
        statistics_of(metric, output, targets)
        for output, targets in iter_logits(
            net, split, batch_size=batch_size, device=device, precision=precision, channels_last=channels_last
        )
    ]
    if not parts:
        raise DataError("expected at least one example to measure, got none; check the split")
    statistics = torch.cat(parts)
    return float(metric.value(statistics.mean(0))), statistics


def statistics_of(metric: Metric, output: Tensor, targets: Tensor) -> Tensor:
    """The statistics of one batch, checked ``[B, S]``, in double precision on the CPU.

    Raises:
        NumericalError: The output is not finite.
        DataError: Targets that the metric does not fit.
    """
    if not bool(torch.isfinite(output).all()):
        raise NumericalError(
            "expected finite outputs, got NaN or infinity from the network; lower the learning rate "
            "or the KL weight, or look at the weights"
        )
    try:
        found = metric.statistics(output.float(), targets.to(output.device))
    except (RuntimeError, IndexError) as error:
        raise DataError(
            f"{metric.name} does not fit outputs {tuple(output.shape)} and targets {tuple(targets.shape)}: "
            "check the last layer, the data and the task"
        ) from error
    if found.ndim != 2 or len(found) != len(targets):
        raise ConfigError(f"{metric.name} must give statistics [examples, S], got {tuple(found.shape)}")
    return found.detach().cpu().double()


def accuracy() -> Metric:
    """Share of examples whose most probable class is right; logits ``[B, K]`` (or one logit for two classes)."""

    def statistics(output: Tensor, labels: Tensor) -> Tensor:
        return (class_logits(output).argmax(1) == labels).double()[:, None]

    return Metric("accuracy", statistics, lambda mean: mean[..., 0])


def mean_iou(classes: int, ignored: int = -100) -> Metric:
    """Mean over classes of intersection over union of pixels (VOC): logits ``[B, K, H, W]``, classes ``[B, H, W]``.

    Intersections and unions are summed over all images first. Classes that occur in neither count nowhere.
    """

    def statistics(output: Tensor, labels: Tensor) -> Tensor:
        predicted, valid = output.argmax(1), labels != ignored
        rows = torch.arange(len(labels), device=labels.device).view(-1, *(1,) * (labels.ndim - 1)) * classes

        def count(classes_there: Tensor, where: Tensor) -> Tensor:
            index = (rows + classes_there)[where]
            return torch.bincount(index, minlength=len(labels) * classes).view(len(labels), classes)

        both = count(labels.clamp(min=0), valid & (predicted == labels))
        union = count(labels.clamp(min=0), valid) + count(predicted, valid) - both
        return torch.cat([both, union], 1).double()

    def value(mean: Tensor) -> Tensor:
        both, union = mean[..., :classes], mean[..., classes:]
        there = union > 0
        ratios = torch.where(there, both / union.clamp(min=1e-300), 0.0)
        return ratios.sum(-1) / there.sum(-1).clamp(min=1)

    return Metric("mean IoU", statistics, value)


def f1() -> Metric:
    """F1 of all labels together (micro): logits ``[B, K]``, targets ``[B, K]`` of 0 and 1."""

    def statistics(output: Tensor, targets: Tensor) -> Tensor:
        said, true = output > 0, targets > 0.5
        return torch.stack([(said & true).sum(1), (said != true).sum(1)], 1).double()

    def value(mean: Tensor) -> Tensor:
        hits, wrong = mean[..., 0], mean[..., 1]
        return torch.where(hits + wrong > 0, 2 * hits / (2 * hits + wrong).clamp(min=1e-300), 1.0)

    return Metric("F1", statistics, value)


def rmse() -> Metric:
    """Root of the mean squared error, in the units of the targets ``[B, D]``; lower is better."""

    def statistics(output: Tensor, targets: Tensor) -> Tensor:
        gap = output.reshape(len(targets), -1) - targets.reshape(len(targets), -1)
        return gap.double().square().mean(1, keepdim=True)

    return Metric("RMSE", statistics, lambda mean: mean[..., 0].sqrt(), higher=False, share=False)
