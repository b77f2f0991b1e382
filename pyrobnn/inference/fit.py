"""`fit`: trains a guide and the network's deterministic parameters by stochastic variational inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan
from pyrobnn.data import Data
from pyrobnn.data.arrays import same_in_all
from pyrobnn.errors import ConfigError
from pyrobnn.guides.local import local_params
from pyrobnn.inference.callbacks import Callback
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.loop import Loop
from pyrobnn.inference.progress import Progress
from pyrobnn.inference.sync_norm import alone
from pyrobnn.inference.terms import Term
from pyrobnn.io.checkpoint import load_checkpoint, save_checkpoint
from pyrobnn.io.exhausted import within_memory
from pyrobnn.io.processes import together
from pyrobnn.model import BayesianModel

LOWER = "the batch size (--batch-size), or the side of the images (--image-size)"


@dataclass
class FitResult:
    """What a fit leaves: the (possibly cut) pair, the history and what was cut on the way.

    Attributes:
        model: the trained model.
        guide: the trained guide, as a module.
        history: one row per epoch.
        plan: cuts made by callbacks, composed, in the coordinates of the model given; None if none.
        seconds: wall-clock time, over all resumed parts.
    """

    model: BayesianModel
    guide: nn.Module
    history: list[dict[str, Any]] = field(default_factory=list)
    plan: PruningPlan | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        last = self.history[-1] if self.history else {}
        figures = ", ".join(f"{key} {last[key]:.4g}" for key in ("nll", "kl", "valid_accuracy") if key in last)
        return f"FitResult({len(self.history)} epochs in {self.seconds:.0f} s{': ' if figures else ''}{figures})"


def fit(
    model: BayesianModel,
    guide: Any,
    data: Data,
    *,
    config: FitConfig | None = None,
    callbacks: Sequence[Callback] = (),
    events: Sequence[Callback] = (),
    terms: Sequence[Term] = (),
    site_weights: dict[str, float | Tensor] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    save: Callable[[dict[str, Any]], None] | None = None,
    state: dict[str, Any] | None = None,
    progress: bool = True,
    title: str = "fit",
    **settings: Any,
) -> FitResult:
    """Fit a guide (and the network's deterministic parameters) by stochastic variational inference.

    Args:
        model: the model.
        guide: a guide of this package, a Pyro AutoGuide, or a function with `pyro.param`s.
        data: training and validation data; `model.data_size` should be `len(data.train)`.
        config: all settings at once; or give them by name (`epochs=20, lr=1e-3`, see
            :class:`FitConfig`).
        callbacks: run beside the gradient steps, see :mod:`pyrobnn.inference.callbacks`.
        events: the earlier name of `callbacks`.
        terms: added to the loss, see :mod:`pyrobnn.inference.terms`.
        site_weights: factors on the KL by site.
        checkpoint: file written after each epoch (to a temporary name, then renamed).
        resume: go on from `checkpoint` if it exists.
        save, state: the same for callers that keep checkpoints themselves.
        progress: show a progress bar with an ETA.
        title: what the bar calls this fit.

    Returns:
        The trained pair, which is the given one unless a callback cut it, and the history.

    Raises:
        ConfigError: bad settings. CheckpointError: a checkpoint of another fit.
        NumericalError: NaN or infinity, naming the site. OutOfMemory: on the device or the host; the last checkpoint is
        whole. ProcessError: another process has ended.

    The global parameter store and the global RNG state are left as they were.

    Under `torchrun`, or where a process group of `torch.distributed` is there, the processes share every batch; all of
    them must call this, with the same arguments. The first one writes the checkpoint, and shows the progress.
    """
    if unknown := settings.keys() - {entry.name for entry in fields(FitConfig)}:
        raise ConfigError(f"expected settings of FitConfig as keywords, got {min(unknown)!r}")
    config = replace(config or FitConfig(), **settings)
    with together() as processes, local_params(model, guide), torch.random.fork_rng(devices=[]), ExitStack() as held:
        same_in_all(data)
        if unknown := (site_weights or {}).keys() - model.sites().keys():
            raise ConfigError(
                f"site_weights names {min(unknown)!r}, which is no site of the model: it has {', '.join(model.sites())}"
            )
        if checkpoint is not None:
            target = Path(checkpoint)
            save = lambda current: save_checkpoint(current, target)  # noqa: E731
            if resume:
                state = processes.first_does(lambda: load_checkpoint(target) if target.exists() else None) or state
        if not processes.first:
            save, progress = None, False
        loop: Loop | None = None

        def tried() -> str:
            share = (
                ""
                if processes.alone
                else f", {-(-config.batch_size // processes.size)} in each of {processes.size} processes"
            )
            return f"{title} (epoch {1 if loop is None else loop.epoch + 1} of {config.epochs}, {config.batch_size} images a step{share})"

        kept = "the last checkpoint is whole: it goes on with --resume where there is more memory, or on more processes"
        held.enter_context(within_memory(tried, LOWER, "" if save is None else kept))
        loop = Loop(model, guide, data, config, (*callbacks, *events), terms, site_weights)
        if state is not None:
            loop.load_state_dict(state)
        loop.run_callbacks("on_start")
        with Progress(title, config.epochs * loop.steps_per_epoch, loop.step, enabled=progress) as bar:
            while loop.epoch < config.epochs:
                loop.run_epoch(bar.update, save)
                bar.epoch(loop.history[-1], config.epochs)
                if save is not None:
                    save(loop.state_dict())
    alone(loop.objective)
    loop.objective.eval()
    loop.model.history = loop.history
    return FitResult(loop.model, loop.guide, loop.history, loop.plan, loop.seconds)
