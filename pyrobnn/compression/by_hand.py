"""The end of the road by hand: tune a network that was cut, and report on it as a run does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pyrobnn.channels import PruningPlan, channel_groups, compact
from pyrobnn.compression.result import Result, finish
from pyrobnn.compression.store import claim, find_spec
from pyrobnn.data import Data, load_data
from pyrobnn.errors import ConfigError
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.precision import choose_layout, resolve_device
from pyrobnn.inference.progress import RunProgress
from pyrobnn.io.processes import here_first
from pyrobnn.nets import check_fits
from pyrobnn.nets.calling import set_mode
from pyrobnn.nets.replica import copy_net
from pyrobnn.pipeline.config import BUDGETS, CompressionConfig
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.schedule import share_out
from pyrobnn.pipeline.state import State
from pyrobnn.pipeline.store import RunStore
from pyrobnn.pipeline.training import TUNE_SEED
from pyrobnn.summary.types import Posterior
from pyrobnn.tasks import Task, task_for

METHOD = Method(
    name="by hand",
    title="each step on its own",
    source="yours",
    cut_where="your plan",
    prior=lambda: None,
    guide=lambda model: NoLatents(),
    rule="plan",
)


def tune(
    net: nn.Module,
    data: Any,
    teacher: nn.Module | None = None,
    *,
    epochs: int | None = None,
    recipe: Mapping[str, Any] | None = None,
    task: str | Task | None = None,
    seed: int = 0,
    precision: str = "auto",
    device: str = "auto",
    progress: bool = True,
) -> nn.Module:
    """Fine-tune a network, as :func:`~pyrobnn.compress` does after its cuts.

    Args:
        net: such as :func:`~pyrobnn.compact` leaves; it is copied.
        data: a :class:`~pyrobnn.Data`, or anything that :func:`~pyrobnn.load_data` takes.
        teacher: the network before the cuts, whose softened outputs are learned beside the labels (Hinton et al. 2015);
            None learns the labels alone.
        epochs: full passes over the training data (default: the recipe's, more on small data).
        recipe: other values of the recipe's fields, such as `{"tune.lr": 0.01, "temperature": 4.0}`.
        task, seed, precision, device, progress: as for :func:`~pyrobnn.compress`.

    Returns:
        The tuned copy, in eval mode on the CPU.

    Raises:
        PyrobnnError: data, network and teacher that do not fit, or an option outside its range.
    """
    context = _context(
        net, data, task, {"epochs": epochs, "recipe": dict(recipe or {}), "seed": seed, "precision": precision,
                          "device": device, "progress": progress},
    )  # fmt: skip
    if teacher is not None:
        check_fits(teacher, context.data.example, context.data.num_classes if context.task.names_classes else None)
        teacher = set_mode(copy_net(teacher), False)
    total = context.epochs.total
    with RunProgress({"tune": total}, enabled=progress):
        tuned, _ = context.train_plain(
            "tune", context.template, total, context.recipe.tune, seed=TUNE_SEED, dense=teacher
        )
    return set_mode(tuned.cpu(), False)


def report_on(
    dense: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    data: Any,
    *,
    posterior: Posterior | None = None,
    task: str | Task | None = None,
    epochs: Mapping[str, int] | None = None,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    **target: Any,
) -> Result:
    """Measure a network that was cut by hand, beside the one it came from: what :func:`~pyrobnn.compress` ends with.

    The test part of the data is read, once. The report, its page and the files are those of a run, and
    :func:`~pyrobnn.load_compact` reads them.

    Args:
        dense: the network before the cuts.
        small: after them, tuned or not.
        plan: from `dense` to `small`, see :func:`~pyrobnn.plan`; several cuts one after another are composed by
            :meth:`PruningPlan.compose`.
        data: as for :func:`tune`.
        posterior: that the plan was made from, for its pictures and `posterior.nc`.
        task, seed, device: as for :func:`~pyrobnn.compress`; the seed is that of your own steps, for the record.
        epochs: passes by phase that you spent, such as `{"infer": 5, "tune": 10}`, for the record.
        out: run directory to write, a new one; of several processes the first writes it.
        **target: what was asked for (`max_drop`, `target_macs`, `target_params`, `target_latency`): whether it was met is in the report.

    Raises:
        PyrobnnError: networks, plan and data that do not fit, an unknown target, or a directory that holds something else.
    """
    start = time.perf_counter()
    unknown = [name for name in target if name not in ("max_drop", *(f"target_{cost}" for cost in BUDGETS))]
    if unknown:
        raise ConfigError(f"a target is max_drop, target_macs, target_params or target_latency, got {unknown[0]!r}")
    context = _context(dense, data, task, {"seed": seed, "device": device, "progress": False, **target})
    expected = {
        name: tuple(value.shape)
        for name, value in compact(dense, plan, None, groups=context.table).state_dict().items()
    }
    found = {name: tuple(value.shape) for name, value in small.state_dict().items()}
    if expected != found:
        name = next(name for name in (*expected, *found) if expected.get(name) != found.get(name))
        raise ConfigError(
            f"the plan leaves {name} {expected.get(name, 'out')} of the dense network, the small one has "
            f"{found.get(name, 'none')}: compose the plans of all cuts"
        )
    if context.config.within_drop and not context.validates:
        raise ConfigError("max_drop is judged on validation images: load the data with valid_fraction above 0")
    sizes: dict[str, Any] = {"num_classes": context.data.num_classes, "in_channels": context.data.image_shape[0]}
    if len(context.data.image_shape) == 3:
        sizes["image_size"] = context.data.image_shape[1:]
    source = data if isinstance(data, str | Path) else None
    path = Path(out) if out is not None and here_first() else None
    with nullcontext() if path is None else claim(path, resume=False):
        state = _measured(context, dense, small, plan, posterior, epochs)
        state = replace(state, seconds=time.perf_counter() - start)
        return finish(
            context, state, find_spec(dense, sizes), source, path, "all", True,
            more={"rule": METHOD.rule, "settings": {}},
        )  # fmt: skip


def _measured(
    context: Context,
    dense: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    posterior: Posterior | None,
    epochs: Mapping[str, int] | None,
) -> State:
    """What the last stage of a run would have left."""
    small = copy_net(small)
    left = context.left(plan)
    base, error = context.scored(copy_net(dense)) if context.validates else (None, 0.0)
    tuned = context.score(small)
    cost = {name: float(getattr(context.dense_cost, name)) for name in ("params", "macs")}
    entry = {
        "round": 1,
        **{name: round(left[name] * cost[name]) for name in cost},
        **context.validation_entry(tuned),
        "widths": plan.widths(),
    }
    return State(
        dense=copy_net(dense),
        net=small,
        plan=plan,
        base=base,
        base_error=error,
        posterior=_decided(posterior, plan),
        rounds=() if plan.is_full else (entry,),
        spent={"dense": 0, "infer": 0, "tune": 0, **(epochs or {})},
        tuned=tuned,
    )


def _context(net: nn.Module, data: Any, task: str | Task | None, options: dict[str, Any]) -> Context:
    """What the stages of a run share, for one step on its own."""
    if not isinstance(net, nn.Module):
        raise ConfigError(f"expected a network (an nn.Module), got {type(net).__name__}")
    config = CompressionConfig.make({**options, "method": METHOD.name})
    loaded = data if isinstance(data, Data) else load_data(data, task=task if isinstance(task, str) else None)
    chosen = task_for(loaded, task)
    template = copy_net(net).cpu()
    choose_layout(template, loaded.example)
    check_fits(template, loaded.example, loaded.num_classes if chosen.names_classes else None)
    recipe = replace(METHOD.recipes.with_values(config.recipe).of(template), infer_share=0.0)
    epochs = share_out(recipe, replace(config, max_drop=None), loaded, template, trained=True)
    store = RunStore(None, {}, template, resolve_device(config.device))
    table = channel_groups(template, loaded.example)
    return Context(config, METHOD, recipe, epochs, loaded, template, table, store, True, chosen)


def _decided(posterior: Posterior | None, plan: PruningPlan) -> Posterior:
    """The posterior with the plan's decisions; of a network that was cut between fits only what fits the plan."""
    if posterior is None:
        return Posterior({}, {})
    channels = {
        name: channel
        for name, channel in posterior.channels.items()
        if name in plan.channels and len(channel.snr) == plan.channels[name]
    }
    return replace(posterior, channels=channels).decide(plan)
