"""The end of a run: the test set is read once, and the run directory is written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan
from pyrobnn.compression.export import Exported, export
from pyrobnn.compression.store import DENSE, claim, write_run
from pyrobnn.inference.measuring import milliseconds
from pyrobnn.inference.precision import cpu_has_bf16
from pyrobnn.io.processes import current, here_first
from pyrobnn.methods.registry import METHODS
from pyrobnn.metrics.latency import relative_latency, smallest_batch
from pyrobnn.metrics.paired import compare
from pyrobnn.metrics.robustness import robustness
from pyrobnn.metrics.scores import class_logits
from pyrobnn.nets import save_weights
from pyrobnn.nets.adapter import released
from pyrobnn.nets.calling import set_mode
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.state import State
from pyrobnn.pipeline.target import complaints, drop_interval, outcome
from pyrobnn.posterior.bayesian_net import BayesianNet, settings
from pyrobnn.report.report import SCHEMA, measure, measure_posterior, per_class, reduction, test_outputs, versions
from pyrobnn.summary.types import Posterior


@dataclass
class Result:
    """What :func:`compress` returns.

    Attributes:
        compact: the smaller plain network, in eval mode on the CPU.
        dense: the network it came from.
        report: the content of `report.json`, all measured on `compact` (and on `dense` beside it).
        posterior: site and channel summaries; see `posterior.plot()` and `posterior.to_arviz()`.
        plan: kept units per group, in the coordinates of `dense`.
        bayesian: the compact network with the posterior of its weights, if `bayesian_epochs` were asked for.
    """

    compact: nn.Module
    dense: nn.Module
    report: dict[str, Any]
    posterior: Posterior
    plan: PruningPlan
    bayesian: BayesianNet | None
    _spec: dict[str, Any] | None
    _mean: tuple[float, ...]
    _std: tuple[float, ...]
    _classes: tuple[str, ...]
    _images: Tensor  # some training images, normalised, on which exports are tried

    def export(self, path: str | Path, format: str | None = None, *, normalise: bool = False) -> Exported:
        """Write the compact network as ONNX or `torch.export`, see :func:`~pyrobnn.export`.

        Args:
            path: target file, `.onnx` or `.pt2`.
            format: `onnx` or `torch`; by default from the suffix.
            normalise: put the normalisation inside, so that the file takes pixels in 0-1.

        Raises:
            ConfigError, NetError: as :func:`~pyrobnn.export`.
        """
        inside = (self._mean, self._std) if normalise else None
        return export(self.compact, self._images, path, format=format, normalise=inside)

    def save(self, path: str | Path) -> None:
        """Write the run directory (see :func:`~pyrobnn.load_compact`). Of several processes the first one writes it.

        Raises:
            CheckpointError: the directory holds something else.
        """
        if here_first():
            with claim(Path(path), resume=False):
                self._write(Path(path))

    def _write(self, path: Path) -> None:
        write_run(
            path,
            net=self.compact,
            spec=self._spec,
            plan=self.plan,
            posterior=self.posterior,
            bayesian=self.bayesian,
            report=self.report,
            mean=self._mean,
            std=self._std,
            classes=self._classes,
        )


def finish(
    context: Context,
    state: State,
    spec: dict[str, Any] | None,
    source: Any,
    path: Path | None,
    trained_on: str,
    clean: bool,
    more: Mapping[str, Any] | None = None,
) -> Result:
    """Read the test set, once; write the run. Processes that share the run share the reading.

    Args:
        context, state: of the run, and what its last stage left.
        spec: how the dense network is built, for built-in ones.
        source: what the data were loaded from, if that was a name or a path.
        path: run directory; None writes nothing.
        trained_on: what the dense weights have seen, `train` or `all`.
        clean: nothing was chosen on images that they have seen.
        more: entries of the report that the context knows nothing of.
    """
    processes = current()
    config, data, scratch = context.config, context.data, context.config.from_scratch is not None
    dense, small = set_mode(state.dense.cpu(), False), set_mode(state.net.cpu(), False)
    nets, widths = {"dense": dense, "compact": small}, {"dense": context.table.widths(), "compact": state.plan.widths()}
    task = context.task
    said = {name: test_outputs(net, data, context.device, task) for name, net in nets.items()}

    def measured() -> dict[str, dict[str, Any]]:  # times, among others, which others would disturb
        how: dict[str, Any] = {"device": context.device, "trained_on": trained_on, "task": task}
        return {name: measure(net, data, widths[name], said=said[name], **how) for name, net in nets.items()}

    figures = processes.first_does(measured)
    comparison = compare(task.metric, said["dense"].statistics, said["compact"].statistics)
    others: dict[str, Any] = {"comparison": comparison.to_dict()}
    logits = {name: class_logits(answer.logits) for name, answer in said.items() if answer.logits is not None}
    labels = said["dense"].labels
    if labels is not None:
        others["per_class"] = per_class(logits, labels, data.classes)
    if task.softens and data.packing is None:
        precision = "fp32" if context.inference_dtype is None else "bf16"
        others["robustness"] = robustness(
            dense, small, data.test, device=context.device, precision=precision, logits=logits
        )
    bayesian = None
    if "bayesian" in state.extras:
        fitted = state.extras["bayesian"]
        bayesian = BayesianNet.from_state(small, fitted, data_size=len(data.train), likelihood=context.likelihood)
        if task.softens:
            kl_weight, seconds = settings(small)["kl_schedule"], state.extras["bayesian_seconds"]
            drawn, draws = bayesian, context.recipe.draws  # each is a pass
            scores = processes.first_does(lambda: measure_posterior(drawn, data, draws=draws))
            others["bayesian"] = {**scores, "kl_weight": kl_weight, "seconds": seconds}
    interval = None
    if config.within_drop:
        shown = replace(data, test=data.valid)
        valid = [test_outputs(net, shown, context.device, task).statistics for net in (dense, small)]
        interval = drop_interval(task.metric, *valid)
    share = None
    if config.target_latency is not None:
        example = data.example.to(context.device)
        one = example[: smallest_batch(small, example)]
        share = processes.first_does(lambda: relative_latency(small, dense, one))
    target = outcome(
        config.target,
        figures["dense"],
        figures["compact"],
        base=state.base,
        tuned=state.tuned,
        interval=interval,
        latency=share,
    )
    spent = {phase: round(passes, 3) for phase, passes in state.spent.items()}
    epochs = {phase: int(passes) if float(passes).is_integer() else passes for phase, passes in spent.items()}
    report = {
        "schema": SCHEMA,
        "method": "from-scratch" if scratch else context.method.name,
        "model": spec["model"] if spec else type(context.template).__name__,
        "data": str(source) if source is not None else data.name,
        "data_settings": {n: v for n, v in config.data_settings.items() if n not in ("stream", "workers")},
        "options": config.told(),
        "task": task.name,
        "seed": config.seed,
        "rule": _rule(context),
        "target": target,
        "validation_clean": clean,
        "trained_on": trained_on,
        "epochs": sum(epochs.values()),
        "epochs_by_phase": epochs,
        "seconds": state.seconds,
        "precision": "fp32" if context.autocast is None else "bf16",
        **_measured(context),
        "device": str(context.device),
        "threads": torch.get_num_threads(),
        "processes": processes.size,
        "versions": versions(),
        **figures,
        "reduction": reduction(figures["dense"], figures["compact"]),
        **others,
        **({"dense_training": state.extras["dense_training"]} if "dense_training" in state.extras else {}),
        **({"zeros": state.extras["zeros"]} if "zeros" in state.extras else {}),
        "rounds": list(state.rounds),
        "validation": {"dense": context.figure(state.base), "compact": context.figure(state.tuned)},
        "settings": context.settings(),
        "refused": dict(context.table.refused),
        # None: no command line makes this run again.
        **({} if METHODS.get(context.method.name) is context.method else {"command": None}),
        **(more or {}),
    }
    report = processes.agreed(report)
    images = data.train.normalise(data.train.images[:64])
    small, dense = released(small), released(dense)
    result = Result(
        small, dense, report, state.posterior, state.plan, bayesian, spec, data.mean, data.std, data.classes, images
    )

    def write(path: Path) -> None:
        if not context.trained and not scratch:  # else it was given, or never trained
            seen = "train" if len(data.valid) else "all"
            save_weights(dense, path / DENSE, mean=data.mean, std=data.std, trained_on=seen, data=data.fingerprint)
        result._write(path)

    if path is not None:
        processes.first_does(lambda: write(path))
    cut = scratch or not state.plan.is_full or "zeros" in state.extras
    figure = "points of validation accuracy" if task.names_classes else f"of validation {task.metric.name}"
    gone = None if scratch else report["reduction"]
    for line in complaints(target, cut=cut, figure=figure, removed=gone):
        warnings.warn(line, UserWarning, stacklevel=4)
    return result


def _rule(context: Context) -> str:
    """What decided which channels went."""
    config = context.config
    if config.from_scratch is not None:
        return "plan"
    if config.has_budget:
        return "budget"
    return "max-drop" if config.within_drop else context.method.rule


def _measured(context: Context) -> dict[str, Any]:
    """What the choice of precision was made from, where steps were timed for it."""
    if context.config.precision != "auto" or context.device.type != "cpu" or not cpu_has_bf16():
        return {}
    times = milliseconds(context.template, context.data.example)
    return {} if times is None else {"precision_ms": times}
