"""Scores of a network on the validation images, in the units of `--max-drop`, and how they are reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pyrobnn.data import Data
from pyrobnn.inference.precision import channels_last
from pyrobnn.inference.validation import validation_key
from pyrobnn.io.processes import current
from pyrobnn.metrics.evaluate import evaluate
from pyrobnn.metrics.metric import measured
from pyrobnn.nets.calling import set_mode
from pyrobnn.pipeline import acceptance
from pyrobnn.tasks import Task


class Scoring:
    """What a run measures on validation images; part of :class:`~pyrobnn.pipeline.context.Context`.

    Attributes:
        task: the metric that counts.
        data: with its validation part.
        device, autocast: where and in which dtype networks run (None: fp32).
    """

    task: Task
    data: Data
    device: torch.device
    autocast: torch.dtype | None

    @property
    def validates(self) -> bool:
        """There are validation images."""
        return len(self.data.valid) > 0

    def score(self, net: nn.Module) -> float | None:
        """How good a network is on the validation part, None without one; leaves the network in eval mode.

        Accuracy; of other tasks the figure in the units of `max_drop`, a hundredth of it, higher being better
        (:meth:`~pyrobnn.metrics.metric.Metric.score`).
        """
        if not self.validates:
            return None
        return self.scored(net)[0]

    def scored(self, net: nn.Module) -> tuple[float, float]:
        """The score, and its standard error in the units of `max_drop`; the same in all processes of a run."""
        return current().agreed(self._scored(net))

    def _scored(self, net: nn.Module) -> tuple[float, float]:
        metric, valid = self.task.metric, self.data.valid
        net = channels_last(set_mode(net.to(self.device), False))
        precision = "fp32" if self.autocast is None else "bf16"
        if self.task.names_classes:
            value = evaluate(net, valid, device=self.device, precision=precision, channels_last=True).accuracy
            return value, acceptance.resolution(value, len(valid))
        value, statistics = measured(net, valid, metric, device=self.device, precision=precision, channels_last=True)
        return metric.score(value), metric.standard_error(statistics)

    def score_of_row(self, row: Mapping[str, Any]) -> float:
        """The score (:meth:`score`) of an epoch whose network was measured on the validation images."""
        return self.task.metric.score(float(row[validation_key(self.task.metric)]))

    def point(self, base: float) -> float:
        """What one point of accuracy is in the units of `max_drop`: a hundredth of the figure where it is no share."""
        return 1.0 if self.task.metric.share else abs(base)

    def figure(self, score: float | None) -> float | None:
        """The figure of a score, as reports say it."""
        return None if score is None else self.task.metric.figure(score)

    def words(self, score: float | None) -> str | None:
        """The figure of a score, for people."""
        return None if score is None else self.task.metric.words(self.task.metric.figure(score))

    def validation_entry(self, score: float | None) -> dict[str, Any]:
        """What a round's entry in the report says of its validation."""
        if self.task.names_classes:
            return {"valid_accuracy": score}
        return {"metric": self.task.metric.name, "valid_value": self.figure(score)}
