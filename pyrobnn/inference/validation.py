"""The validation figures of an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyrobnn.data import Data
from pyrobnn.inference.precision import channels_last
from pyrobnn.metrics.evaluate import evaluate
from pyrobnn.metrics.metric import Metric, measured
from pyrobnn.tasks import task_for


def validated(net: nn.Module, data: Data, device: torch.device, precision: str) -> dict[str, Any]:
    """`valid_accuracy` of one class per image, `valid_<metric>` of other targets."""
    metric = task_for(data).metric
    net = channels_last(net)
    if metric.name == "accuracy":
        found = evaluate(net, data.valid, device=device, precision=precision, channels_last=True)
        return {"valid_accuracy": found.accuracy}
    value, _ = measured(net, data.valid, metric, device=device, precision=precision, channels_last=True)
    return {validation_key(metric): value}


def validation_key(metric: Metric) -> str:
    """The name of a metric's figure in an epoch's row.

    >>> from pyrobnn.metrics.metric import accuracy
    >>> validation_key(accuracy())
    'valid_accuracy'
    """
    return f"valid_{metric.name.lower().replace(' ', '_')}"
