"""`compress`: the whole pipeline in one call, from a CNN to a smaller CNN."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import channel_groups
from pyrobnn.compression.result import Result, finish
from pyrobnn.compression.store import claim, find_spec
from pyrobnn.data import Data, load_data
from pyrobnn.data.arrays import same_in_all
from pyrobnn.data.memory import room_of_all
from pyrobnn.errors import ConfigError
from pyrobnn.inference.fit import LOWER
from pyrobnn.inference.precision import choose_layout, resolve_device, resolve_precision
from pyrobnn.inference.progress import RunProgress
from pyrobnn.io.exhausted import within_memory
from pyrobnn.io.files import first_line
from pyrobnn.io.processes import Processes, together
from pyrobnn.likelihoods import OF_TENSORS, Categorical, Likelihood
from pyrobnn.methods.own import with_own
from pyrobnn.methods.registry import METHODS, get_method
from pyrobnn.model import BayesianModel
from pyrobnn.nets import build_spec, check_fits, check_precision, load_weights, net_spec
from pyrobnn.nets.adapter import adapted
from pyrobnn.nets.calling import arguments, batch_for, eval_mode, main_output
from pyrobnn.nets.replica import copy_net
from pyrobnn.pipeline.config import CompressionConfig, keyword_parameters
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.device import on_this_device, said, settled_by
from pyrobnn.pipeline.identity import identity
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.pipelines import common, from_scratch
from pyrobnn.pipeline.refit import check_refit, refit
from pyrobnn.pipeline.schedule import Epochs, check_epochs, share_out
from pyrobnn.pipeline.stages import Stage, run_stages
from pyrobnn.pipeline.store import RunStore
from pyrobnn.priors.base import Prior, PriorFunction
from pyrobnn.tasks import Task, task_for

UNCLEAN = (
    "the given weights have seen the validation images (trained_on: all), so --max-drop and automatic stops are "
    "judged on biased data"
)


def compress(
    net: nn.Module | str,
    data: Any,
    method: str | Method = "ard",
    *,
    prior: Prior | PriorFunction | None = None,
    guide: Callable[[BayesianModel], Any] | None = None,
    task: str | Task | None = None,
    likelihood: Likelihood | None = None,
    **options: Any,
) -> Result:
    """Train, infer, cut, tune and report.

    Args:
        net: a module, or a name that :func:`pyrobnn.nets.build` knows. It is copied.
        data: a :class:`~pyrobnn.data.Data`, or anything that :func:`~pyrobnn.load_data` takes.
        method: a name, see `pyrobnn methods`; or a :class:`~pyrobnn.pipeline.method.Method` of your own.
        prior: of your own, in place of the method's; the method then says how the network is trained, and nothing else.
        guide: the same for the guide: what makes one of a model, such as `pb.guides.MeanField`.
        task: what the targets are: a name (`classification`, `segmentation`, `multilabel`, `regression`), or a
            :class:`~pyrobnn.tasks.Task` of your own; by default what they look like.
        likelihood: of the targets, in place of the task's own.
        **options: the fields of :class:`~pyrobnn.pipeline.config.CompressionConfig`:

            OPTIONS

    Returns:
        A :class:`Result`.

    Raises:
        PyrobnnError: any bad input, in one line that says what to do.

    Under `torchrun`, or where a process group of `torch.distributed` is there, the processes share the work; all of
    them must call this, with the same arguments. The first one alone writes files and says what happens.
    """
    chosen = method if isinstance(method, Method) else get_method(method)
    if prior is not None or guide is not None:
        chosen = with_own(chosen, prior, guide)

    def tried() -> str:
        return "passes over images without gradients, or their loading"

    with together() as processes, within_memory(tried, f"{LOWER} or --workers"):
        return _compress(processes, net, data, chosen, task, likelihood, options)


def _compress(
    processes: Processes,
    net: nn.Module | str,
    data: Any,
    chosen: Method,
    task: str | Task | None,
    likelihood: Likelihood | None,
    options: dict[str, Any],
) -> Result:
    named = task.name if isinstance(task, Task) else task
    config = CompressionConfig.make({**options, "method": chosen.name, "task": named})
    config = replace(config, progress=config.progress and processes.first)
    recipes = chosen.recipes.with_values(config.recipe)
    if config.target_nonzero is not None and chosen.zeros is None:
        able = ", ".join(name for name, other in METHODS.items() if other.zeros is not None)
        raise ConfigError(f"--target-nonzero needs a method that zeroes single weights ({able}), got {chosen.name}")
    source = data if isinstance(data, str | Path) else None
    # The first process leads, so that what is downloaded is there for the others.
    with room_of_all():
        data = processes.first_leads(lambda: _loaded(data, config, net, task if isinstance(task, str) else None))
    same_in_all(data)
    chosen_task = task_for(data, task)
    if likelihood is not None:
        chosen_task = replace(chosen_task, likelihood=likelihood)
    net, spec = _network(net, data, config.seed, chosen_task)
    trained, trained_on = config.trained, "train"
    if config.weights is not None:
        info = load_weights(net, config.weights)
        trained, trained_on = True, info.trained_on
        if info.metadata.get("data", data.fingerprint) != data.fingerprint:
            trained_on = "all"  # the training part of another split can be any images of this one
        if info.mean is not None and info.std is not None:
            data = data.with_normalisation(info.mean, info.std)
    elif trained:
        trained_on = "all"
    processes.of_the_first(list(net.state_dict().values()))
    _check_output(chosen_task, net, data)
    clean = trained_on != "all"
    if not clean and config.max_drop is None and (config.has_budget or config.target_nonzero is not None):
        data = data.without_validation()  # nothing is chosen on data, so all training images may train
    elif not clean and (config.max_drop is not None or chosen.stops):
        warnings.warn(UNCLEAN, UserWarning, stacklevel=3)
    if (config.max_drop is not None or chosen.stops) and not config.has_budget and not len(data.valid):
        raise ConfigError(
            "stopping by accuracy (--max-drop, or a method's own rule) needs validation images: load the data with valid_fraction above 0"
        )
    table = channel_groups(net, data.example, protect=config.protect)
    if chosen.usable is not None and config.from_scratch is None:
        table = chosen.usable(net, table)
    if not table:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(table.refused.items())[:3])
        raise ConfigError(f"no channel of this network can be cut ({reasons or 'no groups found'})")
    # What can be refused is refused now, before hours of training and before anything is written.
    resolve_precision(config.precision, resolve_device(config.device), net)
    if config.from_scratch is not None:
        table.keep_vector(config.from_scratch)
    path = None if config.out is None else Path(config.out)
    recipe = recipes.of(net)
    check_epochs(recipe, config, trained=trained)
    who = identity(config, chosen, recipe, data, net, trained=trained, task=chosen_task)
    measured = processes.first_does(lambda: on_this_device(config, net, table, data.example))
    settled_by(measured, config, table)
    with ExitStack() as held:
        if path is not None:
            processes.first_does(lambda: held.enter_context(claim(path, resume=config.resume)))
        store = RunStore(path, who, net, resolve_device(config.device), resume=config.resume)
        if measured:  # a resumed run goes on with what was measured when it began
            measured = store.once("measured", partial(dict, measured))
            config, table = settled_by(measured, config, table)
        # A time budget is turned into epochs when the run begins.
        epochs = Epochs.of(store.once("epochs", lambda: share_out(recipe, config, data, net, trained=trained).data()))
        context = Context(config, chosen, recipe, epochs, data, net, table, store, trained, chosen_task)
        planned = {"dense": epochs.dense, "infer": sum(epochs.infer), "tune": epochs.tune + epochs.retune}
        context.say(data.describe(), "")
        if measured:
            context.say(said(measured, table), "")
        with RunProgress(
            {**planned, "bayesian": config.bayesian_epochs},
            done=None if store.newest is None else store.state(store.newest[1]).spent,
            note=f"{len(table)} channel groups",
            enabled=config.progress,
        ):
            state = run_stages(context, _stages(context))
        if config.bayesian_epochs:
            check_refit(state, config.bayesian_epochs)  # a stage that was finished before is not run again
        return finish(context, state, spec, source, path, trained_on, clean)


def _stages(context: Context) -> list[Stage]:
    """The whole pipeline of a run."""
    config = context.config
    if config.from_scratch is not None:
        stages = from_scratch(config.from_scratch)
    else:
        stages = (context.method.pipeline or common)(context)
    return [*stages, refit(config.bayesian_epochs)] if config.bayesian_epochs else stages


def _loaded(data: Any, config: CompressionConfig, net: nn.Module | str, task: str | None) -> Data:
    if isinstance(data, Data) and config.data_settings:
        told = " and ".join(config.data_settings)
        raise ConfigError(f"the data is loaded already, so {told} would do nothing: give that to load_data")
    layers = net.modules() if isinstance(net, nn.Module) else ()
    first = next((layer for layer in layers if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)), None)
    return load_data(data, task=task, signals=isinstance(first, nn.Conv1d), **config.data_settings)


def _network(net: nn.Module | str, data: Data, seed: int, task: Task) -> tuple[nn.Module, dict[str, Any] | None]:
    sizes: dict[str, Any] = {"num_classes": data.num_classes, "in_channels": data.image_shape[0]}
    if len(data.image_shape) == 3:
        sizes["image_size"] = data.image_shape[1:]
    if isinstance(net, nn.Module):
        check_precision(net, (data.example,))
        made, spec = copy_net(net).cpu(), find_spec(net, sizes)
    else:
        spec = dict(net_spec(net, **sizes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = build_spec(spec)
    if task.call is not None or data.packing is not None:
        made = adapted(made, None if data.packing is None else data.packing.unpack, task.call)
    choose_layout(made, data.example)
    return made, spec


def _check_output(task: Task, net: nn.Module, data: Data) -> None:
    """Runs the network once: its output must speak of the targets that there are."""
    one_logit = data.num_classes == 2  # or a logit for each
    plain = task.names_classes and isinstance(task.likelihood, Categorical)
    check_fits(net, data.example)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), eval_mode(net):
        said = net(*arguments(batch_for(net, data.example)))
    if not isinstance(task.likelihood, OF_TENSORS) and not isinstance(said, Tensor):
        raise ConfigError(
            f"the network returns a {type(said).__name__} and the likelihood is your own: say which tensor counts with "
            "task=Task(..., call=lambda net, batch: net(batch)[...])"
        )
    output = main_output(said)
    if plain and not (one_logit and tuple(output.shape) == (len(data.example), 1)):
        check_fits(net, data.example, data.num_classes)
    expected = (len(data.example), *data.train.labels.shape[1:])
    try:
        shape = tuple(task.likelihood(output).shape())
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(
            f"the likelihood does not fit the network's output {tuple(output.shape)}: {first_line(error)}"
        ) from error
    if shape != expected:
        said = "one class per image" if task.names_classes else f"targets {list(expected[1:])} for each image"
        raise ConfigError(
            f"{task.name} needs {said}, so likelihood and network must give a distribution of shape {expected}, got shape "
            f"{shape} for {len(data.example)} images (output {tuple(output.shape)})"
        )


def _say_options() -> None:
    """The signature and the docstring of :func:`compress` from the one list of options."""
    lines = [f"{o.name}: {o.help}" for o in CompressionConfig.options() if o.name not in ("method", "task")]
    # Python 3.13 takes the indentation of the function away from its docstring.
    compress.__doc__ = re.sub(
        r"^( +)OPTIONS$", lambda found: indent("\n".join(lines), found[1]), compress.__doc__ or "", flags=re.MULTILINE
    )
    shown = [p for p in inspect.signature(compress).parameters.values() if p.kind is not p.VAR_KEYWORD]
    shown += keyword_parameters(without=("method", "task"))
    compress.__signature__ = inspect.Signature(shown, return_annotation=Result)  # type: ignore[attr-defined]


_say_options()
