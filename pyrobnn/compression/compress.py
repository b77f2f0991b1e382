"""The whole road in one call: a CNN in, a truly smaller CNN out."""

from __future__ import annotations

import inspect
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyrobnn.channels import PruningPlan, channel_groups
from pyrobnn.channels.planner import Limits, plan_for_budget
from pyrobnn.compression.store import CHECKPOINT, DENSE, claim, find_spec, write_run
from pyrobnn.data import Data, load_data
from pyrobnn.errors import ConfigError
from pyrobnn.inference.precision import choose_layout, resolve_device, resolve_precision
from pyrobnn.inference.progress import RunProgress
from pyrobnn.likelihoods import Likelihood
from pyrobnn.methods.registry import METHODS, get_method
from pyrobnn.metrics.robustness import robustness
from pyrobnn.nets import build_spec, check_fits, load_weights, net_spec, save_weights
from pyrobnn.nets.calling import answer, set_mode
from pyrobnn.nets.replica import copy_net
from pyrobnn.pipeline.common import common_road, scratch_road
from pyrobnn.pipeline.config import CompressionConfig, keyword_parameters
from pyrobnn.pipeline.identity import identity
from pyrobnn.pipeline.journal import Journal
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.refit import survive
from pyrobnn.pipeline.run import Run
from pyrobnn.pipeline.schedule import share_out
from pyrobnn.posterior.bayesian_net import BayesianNet, settings
from pyrobnn.report.report import SCHEMA, answers, measure, measure_posterior, reduction, versions
from pyrobnn.summary.types import Posterior

UNCLEAN = (
    "the given weights have seen the validation images (trained_on: all), so --max-drop and automatic stops are "
    "judged on biased data"
)


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

    def save(self, path: str | Path) -> None:
        """Write the run directory (see :func:`~pyrobnn.load_compact`).

        Raises:
            CheckpointError: the directory holds something else.
        """
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
        )


def compress(
    net: nn.Module | str, data: Any, method: str | Method = "ard", *, likelihood: Likelihood | None = None, **options: Any
) -> Result:
    """Train, infer, cut, tune and report.

    Args:
        net: a module, or a name that :func:`pyrobnn.nets.build` knows. It is copied.
        data: a :class:`~pyrobnn.data.Data`, or anything that :func:`~pyrobnn.load_data` takes.
        method: a name, see `pyrobnn methods`; or a :class:`~pyrobnn.pipeline.method.Method` of your own.
        likelihood: of the labels, one class per image; categorical by default.
        **options: the fields of :class:`~pyrobnn.pipeline.config.CompressionConfig`:

OPTIONS
    Returns:
        A :class:`Result`.

    Raises:
        PyrobnnError: any bad input, in one line that says what to do.
    """
    chosen = method if isinstance(method, Method) else get_method(method)
    config = CompressionConfig.make({**options, "method": chosen.name})
    recipes = chosen.recipes.with_values(config.recipe)
    if config.target_nonzero is not None and chosen.zeros is None:
        able = ", ".join(name for name, other in METHODS.items() if other.zeros is not None)
        raise ConfigError(f"--target-nonzero needs a method that zeroes single weights ({able}), got {chosen.name}")
    source = data if isinstance(data, str | Path) else None
    data = _loaded(data, config, net)
    net, spec = _network(net, data, config.seed)
    trained, trained_on = config.trained, "train"
    if config.weights is not None:
        info = load_weights(net, config.weights)
        trained, trained_on = True, info.trained_on
        if info.mean is not None and info.std is not None:
            data = data.with_normalisation(info.mean, info.std)
    elif trained:
        trained_on = "all"
    check_fits(net, data.example, data.num_classes)
    if likelihood is not None:
        _check_likelihood(likelihood, net, data)
    clean = trained_on != "all"
    if not clean and config.max_drop is None and (config.has_budget or config.target_nonzero is not None):
        data = data.without_validation()  # nothing is chosen on data, so all training images may train
    elif not clean and (config.max_drop is not None or chosen.stops):
        warnings.warn(UNCLEAN, UserWarning, stacklevel=2)
    if (config.max_drop is not None or chosen.stops) and not config.has_budget and not len(data.valid):
        raise ConfigError("stopping by accuracy (--max-drop, or a method's own rule) needs validation images: load the data with valid_fraction above 0")
    table = channel_groups(net, data.example, protect=config.protect)
    if chosen.usable is not None and config.from_scratch is None:
        table = chosen.usable(net, table)
    if not table:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(table.refused.items())[:3])
        raise ConfigError(f"no channel of this network can be cut ({reasons or 'no groups found'})")
    # What can be refused is refused now, before hours of training and before anything is written.
    resolve_precision(config.precision, resolve_device(config.device), net)
    if config.has_budget:
        limits = Limits(config.min_channels, config.round_to)
        nothing = {group.name: torch.zeros(group.channels) for group in table}
        plan_for_budget(
            nothing, table, target_macs=config.target_macs, target_params=config.target_params, limits=limits
        )
    if config.from_scratch is not None:
        table.keep_vector(config.from_scratch)
    path = None if config.out is None else Path(config.out)
    recipe = recipes.of(net)
    who = identity(config, chosen, recipe, data, net, trained=trained, likelihood=likelihood)
    with claim(path, resume=config.resume) if path is not None else nullcontext():
        journal = Journal(path / CHECKPOINT if path else None, who, resume=config.resume)
        share = journal.carry.get("share")
        schedule = share_out(recipe, config, data, net, trained=trained)
        if share is not None:  # a time budget was turned into epochs when the run began
            schedule = replace(schedule, dense=share[0], infer=tuple(share[1]), tune=share[2], retune=share[3])
        journal.step(
            "schedule", lambda carry: {"share": [schedule.dense, list(schedule.infer), schedule.tune, schedule.retune]}
        )
        run = Run(net, table, data, chosen, config, recipe, schedule, journal, trained=trained, likelihood=likelihood)
        planned = {"dense": schedule.dense, "infer": sum(schedule.infer), "tune": schedule.tune + schedule.retune}
        with RunProgress(
            {**planned, "bayesian": config.bayesian_epochs},
            done=journal.carry.get("epochs"),
            note=f"{len(table)} channel groups",
            enabled=config.progress,
        ):
            if config.from_scratch is not None:
                scratch_road(run, config.from_scratch)
            else:
                (chosen.road or common_road)(run)
            journal.step("finished", lambda carry: {"seconds": journal.seconds})
            if config.bayesian_epochs:
                survive(run, config.bayesian_epochs)
        return _finish(run, spec, source, path, trained_on, clean)


def _loaded(data: Any, config: CompressionConfig, net: nn.Module | str) -> Data:
    if isinstance(data, Data) and config.data_settings:
        told = " and ".join(config.data_settings)
        raise ConfigError(f"the data is loaded already, so {told} would do nothing: give that to load_data")
    layers = net.modules() if isinstance(net, nn.Module) else ()
    first = next((layer for layer in layers if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)), None)
    return load_data(data, signals=isinstance(first, nn.Conv1d), **config.data_settings)


def _network(net: nn.Module | str, data: Data, seed: int) -> tuple[nn.Module, dict[str, Any] | None]:
    sizes: dict[str, Any] = {"num_classes": data.num_classes, "in_channels": data.image_shape[0]}
    if len(data.image_shape) == 3:
        sizes["image_size"] = data.image_shape[1:]
    if isinstance(net, nn.Module):
        net = copy_net(net).cpu()
        choose_layout(net, data.example)
        return net, find_spec(net, sizes)
    spec = net_spec(net, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_spec(spec), dict(spec)


def _check_likelihood(likelihood: Likelihood, net: nn.Module, data: Data) -> None:
    net = set_mode(copy_net(net), False)
    with torch.no_grad():
        shape = tuple(likelihood(answer(net, data.example)).shape())
    if shape != (len(data.example),):
        raise ConfigError(
            f"compress measures accuracy, so its likelihood must give one class per image, got shape {shape} for "
            f"{len(data.example)} images: for other targets use fit, summarize, plan and compact"
        )


def _rule(run: Run) -> str:
    """What decided which channels went."""
    if run.carry.get("scratch"):
        return "plan"
    if run.request.has_budget:
        return "budget"
    return run.method.rule if run.request.max_drop is None else "max-drop"


def _finish(
    run: Run, spec: dict[str, Any] | None, source: Any, path: Path | None, trained_on: str, clean: bool
) -> Result:
    """Read the test set, once; write the run."""
    dense, small = set_mode(run.net("dense").cpu(), False), set_mode(run.net().cpu(), False)
    plan, posterior, data = run.plan, run.posterior(), run.data
    nets, widths = {"dense": dense, "compact": small}, {"dense": run.table.widths(), "compact": plan.widths()}
    logits = {name: answers(net, data, run.device) for name, net in nets.items()}
    figures = {
        name: measure(net, data, widths[name], device=run.device, trained_on=trained_on, logits=logits[name])
        for name, net in nets.items()
    }
    others: dict[str, Any] = {}
    if run.classifies:
        precision = "fp32" if run.quick() is None else "bf16"
        others["robustness"] = robustness(dense, small, data.test, device=run.device, precision=precision, logits=logits)
    state = run.carry.get("bayesian")
    bayesian = None
    if state is not None:
        bayesian = BayesianNet.from_state(small, state, data_size=len(data.train), likelihood=run.likelihood)
        if run.classifies:
            kl_weight, seconds = settings(small)["kl_schedule"], run.carry["bayesian_seconds"]
            measured = measure_posterior(bayesian, data, draws=run.recipe.draws)  # each is a pass
            others["bayesian"] = {**measured, "kl_weight": kl_weight, "seconds": seconds}
    spent = {phase: round(passes, 3) for phase, passes in run.carry["epochs"].items()}
    epochs = {phase: int(passes) if float(passes).is_integer() else passes for phase, passes in spent.items()}
    report = {
        "schema": SCHEMA,
        "method": "from-scratch" if run.carry.get("scratch") else run.method.name,
        "model": spec["model"] if spec else type(run.template).__name__,
        "data": str(source) if source is not None else data.name,
        "seed": run.request.seed,
        "rule": _rule(run),
        "target": run.request.target,
        "validation_clean": clean,
        "trained_on": trained_on,
        "epochs": sum(epochs.values()),
        "epochs_by_phase": epochs,
        "seconds": run.carry["seconds"],
        "precision": "fp32" if run.autocast is None else "bf16",
        "device": str(run.device),
        "versions": versions(),
        **figures,
        "reduction": reduction(figures["dense"], figures["compact"]),
        **others,
        **({"zeros": run.carry["zeros"]} if "zeros" in run.carry else {}),
        "rounds": run.carry["rounds"],
        "validation": {"dense": run.carry.get("base"), "compact": run.carry.get("tuned")},
        "settings": run.settings(),
        "refused": dict(run.table.refused),
    }
    result = Result(small.cpu(), dense.cpu(), report, posterior, plan, bayesian, spec, data.mean, data.std)
    if path is not None:
        if not run.trained and not run.carry.get("scratch"):  # else it was given, or never trained
            save_weights(dense, path / DENSE, mean=data.mean, std=data.std, trained_on="train")
        result._write(path)
    return result


def _say_options() -> None:
    """The signature and the docstring of :func:`compress` from the one list of options."""
    lines = [f"            {o.name}: {o.help}" for o in CompressionConfig.options() if o.name != "method"]
    compress.__doc__ = (compress.__doc__ or "").replace("OPTIONS", "\n".join(lines) + "\n")
    shown = [p for p in inspect.signature(compress).parameters.values() if p.kind is not p.VAR_KEYWORD]
    shown += keyword_parameters(without=("method",))
    compress.__signature__ = inspect.Signature(shown, return_annotation=Result)  # type: ignore[attr-defined]


_say_options()
