"""`report.json`: every number is measured on the saved module."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyrobnn.data import Data
from pyrobnn.metrics.evaluate import iter_logits, latency_ms, predict_logits
from pyrobnn.metrics.latency import smallest_batch
from pyrobnn.metrics.metric import statistics_of
from pyrobnn.metrics.scores import Tally
from pyrobnn.nets.calling import set_mode
from pyrobnn.nets.storage import stored_bytes
from pyrobnn.report.cost import count
from pyrobnn.tasks import Task, task_for

if TYPE_CHECKING:
    from pyrobnn.posterior.bayesian_net import BayesianNet

SCHEMA = 1
_PACKAGES = ("pyrobnn", "torch", "torchvision", "pyro-ppl", "numpy", "arviz")

# What may differ between two measurements of the same network.
VOLATILE = ("seconds", "latency_ms", "versions", "threads")


def steady(report: Any) -> Any:
    """A report without what may differ between two runs that are the same, at every depth; tuples are lists, as in JSON.

    >>> steady({"dense": {"params": 8, "latency_ms": 0.3}, "seconds": 2.0})
    {'dense': {'params': 8}}
    """
    if isinstance(report, Mapping):
        return {key: steady(value) for key, value in report.items() if key not in VOLATILE}
    return [steady(value) for value in report] if isinstance(report, list | tuple) else report


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


@dataclass(frozen=True)
class TestOutputs:
    """Outputs of a network on the test images, in fp32 and on the CPU.

    Attributes:
        statistics: Of the task's metric, one row per image ``[N, S]``.
        nll: Mean negative log-likelihood of the targets, in nats.
        labels, logits: Of one class per image, ``[N]`` and ``[N, K]``; None for other tasks.
    """

    statistics: Tensor
    nll: float
    labels: Tensor | None = None
    logits: Tensor | None = None


def test_outputs(
    net: nn.Module, data: Data, device: torch.device | str = "cpu", task: Task | None = None
) -> TestOutputs:
    """Evaluates a network on the test images, once."""
    task = task or task_for(data)
    if task.names_classes:
        logits, labels = predict_logits(net.to(device), data.test, device=device, channels_last=True)
        tally = Tally()
        tally.add_logits(logits, labels)
        return TestOutputs(statistics_of(task.metric, logits, labels), tally.metrics().nll, labels, logits)
    parts, nll = [], 0.0
    for output, targets in iter_logits(net.to(device), data.test, device=device, channels_last=True):
        parts.append(statistics_of(task.metric, output, targets))
        nll -= float(task.likelihood(output).log_prob(targets).sum())
    return TestOutputs(torch.cat(parts), nll / len(data.test))


def measure(
    net: nn.Module,
    data: Data,
    widths: dict[str, int],
    *,
    device: torch.device | str = "cpu",
    trained_on: str = "all",
    task: Task | None = None,
    said: TestOutputs | None = None,
) -> dict[str, Any]:
    """Test figures and cost of one network, in fp32.

    Args:
        net: a plain network.
        data: its test part is used.
        widths: channels per group, for the record.
        device: where to measure.
        trained_on: what the saved file says; `bytes` is that file's size.
        task: what the targets are; by default what they look like.
        said: its outputs on the test part, if they are known (:func:`test_outputs`).

    Returns:
        `metric` and `value`; `accuracy` and `ece` of one class per image; `nll`; cost, size and latency.
    """
    task = task or task_for(data)
    net = set_mode(net.to(device), False)
    said = said or test_outputs(net, data, device, task)
    figures: dict[str, Any] = {"metric": task.metric.name, "value": float(task.metric.value(said.statistics.mean(0)))}
    if said.logits is not None and said.labels is not None:
        tally = Tally()
        tally.add_logits(said.logits, said.labels)
        metrics = tally.metrics()
        figures |= {"accuracy": metrics.accuracy, "value": metrics.accuracy, "ece": metrics.ece}
    example = data.example.to(device)
    cost = count(net, example)
    return {
        **figures,
        "nll": said.nll,
        "params": cost.params,
        "nonzero_params": cost.nonzero_params,
        "macs": cost.macs,
        "bytes": stored_bytes(net, mean=data.mean, std=data.std, trained_on=trained_on),
        **_latency(net, example),
        "widths": dict(widths),
    }


def _latency(net: nn.Module, example: Tensor) -> dict[str, Any]:
    batch = smallest_batch(net, example)
    found = {"latency_ms": latency_ms(net, example, batch=batch)}
    return found if batch == 1 else {**found, "latency_batch": batch}


def measure_posterior(net: BayesianNet, data: Data, *, draws: int = 50) -> dict[str, Any]:
    """Test figures of a posterior's averaged predictions, in fp32; one draw costs what the compact net costs.

    Args:
        net: the Bayesian network.
        data: its test part is used.
        draws: posterior draws.
    """
    found = net.predict(data.test, draws=draws)
    metrics = found.metrics(data.test.labels)
    return {
        "accuracy": metrics.accuracy,
        "nll": metrics.nll,
        "ece": metrics.ece,
        "mutual_information": float(found.mutual_information.mean()),
        "draws": draws,
    }


def per_class(logits: Mapping[str, Tensor], labels: Tensor, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Recall of every class for several networks: a mean can hide a class that was lost.

    Args:
        logits: `[N, K]` by the name of the network, on the CPU.
        labels: classes `[N]`.
        names: of the classes; their numbers where there are none.

    Returns:
        A dictionary for each class: its name, how many `images` there are, and for each network the fraction of them
        that it recognises; None for a class without images.

    >>> per_class({"net": torch.eye(3)[[0, 1, 1]]}, torch.tensor([0, 0, 1]))[0]
    {'class': '0', 'images': 2, 'net': 0.5}
    """
    classes = next(iter(logits.values())).shape[1]
    images = torch.bincount(labels, minlength=classes)
    right = {
        name: torch.bincount(labels[found.argmax(1) == labels], minlength=classes).double() / images
        for name, found in logits.items()
    }
    return [
        {
            "class": names[k] if names else str(k),
            "images": int(images[k]),
            **{name: float(found[k]) if images[k] else None for name, found in right.items()},
        }
        for k in range(classes)
    ]


def reduction(dense: dict[str, Any], compact: dict[str, Any]) -> dict[str, float]:
    """Fractions removed."""
    return {key: 1 - compact[key] / dense[key] for key in ("params", "macs", "nonzero_params")}
