"""One loop for every fit: a torch optimiser on the ELBO module, events, history, checkpoints."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan
from pyrobnn.data import Data
from pyrobnn.errors import CheckpointError, NumericalError
from pyrobnn.guides.function import as_guide_module
from pyrobnn.guides.local import local_params, prepare
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.events import Event
from pyrobnn.inference.objective import Objective
from pyrobnn.inference.optimisers import new_optimiser
from pyrobnn.inference.plain import plain
from pyrobnn.inference.precision import as_channels_last, channels_last, resolve_device, resolve_precision
from pyrobnn.inference.progress import Progress
from pyrobnn.inference.schedules import schedule
from pyrobnn.inference.shrink import shrink, shrink_optimiser
from pyrobnn.inference.terms import Term
from pyrobnn.io.checkpoint import load_checkpoint, save_checkpoint
from pyrobnn.metrics.evaluate import evaluate
from pyrobnn.model import BayesianModel
from pyrobnn.summary.summarize import deterministic_net


@dataclass
class FitResult:
    """What a fit leaves: the (possibly cut) pair, the history and what was cut on the way.

    Attributes:
        model: the trained model.
        guide: the trained guide, as a module.
        history: one row per epoch.
        plan: cuts made by events, composed, in the coordinates of the model given; None if none.
        seconds: wall-clock time, over all resumed parts.
    """

    model: BayesianModel
    guide: nn.Module
    history: list[dict[str, Any]] = field(default_factory=list)
    plan: PruningPlan | None = None
    seconds: float = 0.0


class Loop:
    """The state of a running fit; events see it whole.

    Attributes:
        model, guide, objective: the current pair and its loss module.
        epoch, step, steps_per_epoch: where the fit is.
        history: rows so far.
        plan: cuts so far, in the coordinates of the model at the start.
    """

    def __init__(
        self,
        model: BayesianModel,
        guide: Any,
        data: Data,
        config: FitConfig,
        events: Sequence[Event] = (),
        terms: Sequence[Term] = (),
        site_weights: dict[str, float | Tensor] | None = None,
    ) -> None:
        self.config, self.data, self.events = config, data, tuple(events)
        self.device = resolve_device(config.device)
        self.generator = torch.Generator().manual_seed(config.seed)
        # Which images are mirrored in even epochs; not drawn from the generator that shuffles, nor with its seed.
        coins = torch.Generator().manual_seed(config.seed + 1)
        self._sides = torch.rand(len(data.train), generator=coins) < 0.5
        self.epoch = self.step = 0
        self.steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
        if config.max_steps is not None:
            self.steps_per_epoch = min(self.steps_per_epoch, max(1, config.max_steps))
        self.history: list[dict[str, Any]] = []
        self.plan: PruningPlan | None = None
        self.seconds = 0.0
        self._lr = schedule(config.lr_schedule)
        self._kl = schedule(config.kl_schedule)
        model.autocast = resolve_precision(config.precision, self.device, model.net, data.example)
        elbo = ELBO(config.num_particles, site_weights=site_weights, estimator=config.estimator)
        module = as_guide_module(guide)
        if module is not guide:  # so that summarize(model, function) finds what was fitted
            model.function_guides[guide] = module
        self.objective = Objective(model, module, elbo, terms)
        self._place()

    def _place(self) -> None:
        prepare(self.objective)
        self.objective.to(self.device)
        channels_last(self.model.net)
        self.objective.train()
        x, y = next(iter(self.data.train.batches(min(8, len(self.data.train)), device=self.device)))
        self.model.initialise((x, y), self.guide)
        self.objective.to(self.device)
        self.optimiser = new_optimiser(self.config, self.model.net, self.guide)

    @property
    def model(self) -> BayesianModel:
        """The model, as it is after the cuts so far."""
        return self.objective.model

    @property
    def guide(self) -> Any:
        """The guide, likewise."""
        return self.objective.guide

    @property
    def progress(self) -> float:
        """Share of the fit's steps that are done."""
        return self.step / max(1, self.config.epochs * self.steps_per_epoch)

    def mean_net(self) -> nn.Module:
        """The plain network at the posterior means."""
        return deterministic_net(self.model, self.guide)

    def cut(self, plan: PruningPlan) -> None:
        """Shrink model, guide and optimiser to `plan` (current coordinates)."""
        old = (self.model, self.guide)
        model, guide = shrink(*old, plan)
        self.objective.model, self.objective.guide = model, guide
        optimiser = self.optimiser
        self._place()
        self.optimiser = shrink_optimiser(optimiser, old, (model, self.guide), self.optimiser, plan)
        self.plan = plan if self.plan is None else self.plan.compose(plan)
        for event in self.events:
            event.on_cut(self, plan)

    def train_step(self, x: Tensor, y: Tensor, view: Tensor | None = None) -> tuple[float, float, float, int]:
        """One optimiser step; returns loss, nll, kl (per example) and the number of correct labels.

        `view` is that of the :class:`~pyrobnn.data.arrays.Batch`, for terms that know images by it.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * self._lr(self.progress)
        self.objective.kl_weight = self._kl(self.progress)
        # The draws of a step depend on the loop's generator alone: resuming is exact, ranks can differ.
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=self.generator)))
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.objective(as_channels_last(x), y, view)
        loss.loss.backward()
        if self.config.clip is not None:
            parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self.config.clip)
            if not torch.isfinite(norm):
                raise NumericalError(f"gradient of {self._bad_gradient()!r} is not finite: lower the learning rate")
        self.optimiser.step()
        self.step += 1
        labels = loss.output.detach().argmax(-1) if y.dim() == 1 and not y.is_floating_point() else None
        correct = int((labels == y).sum()) if labels is not None else 0
        return float(loss.loss.detach()), float(loss.nll), float(loss.kl), correct

    def _bad_gradient(self) -> str:
        named = [*self.model.net.named_parameters(), *self.guide.named_parameters()]
        return next((n for n, p in named if p.grad is not None and not torch.isfinite(p.grad).all()), "all parameters together")

    def run_epoch(self, report: Callable[[int, float], None]) -> None:
        """One pass over the training data, then the events."""
        start = time.perf_counter()
        sums, seen = [0.0, 0.0, 0.0, 0], 0
        c = self.config
        batches = self.data.train.examples(
            c.batch_size,
            generator=self.generator,
            augment=c.augment,
            device=self.device,
            channels_last=True,
            # In turns: two epochs show both sides of every image, where drawing would show half of them one side twice.
            mirrored=self._sides ^ bool(self.epoch % 2),
        )
        for batch in itertools.islice(batches, self.steps_per_epoch):
            size = len(batch.y)
            if size == 1 and seen:  # a lone example has no batch statistics
                self.step += 1
                continue
            sums = [
                total + value * (1 if k == 3 else size)
                for k, (total, value) in enumerate(zip(sums, self.train_step(*batch), strict=True))
            ]
            seen += size
            for event in self.events:
                event.on_batch_end(self)
            report(self.step, sums[0] / seen)
        self.epoch += 1
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "loss": sums[0] / seen,
            "nll": sums[1] / seen,
            "kl": sums[2] / seen,
            "kl_weight": self.objective.kl_weight,
            "train_accuracy": sums[3] / seen,
        }
        if c.validate and len(self.data.valid):
            row["valid_accuracy"] = evaluate(
                channels_last(self.mean_net()),
                self.data.valid,
                device=self.device,
                precision="fp32" if self.model.autocast is None else "bf16",
                channels_last=True,
            ).accuracy
        self.history.append(row)
        for event in self.events:
            plan = event.on_epoch_end(self)
            if plan is not None:
                self.cut(plan)
        row["seconds"] = time.perf_counter() - start
        self.seconds += row["seconds"]

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed fit needs; loadable with `weights_only=True`."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "config": _settings(self.config),
            "generator": self.generator.get_state(),
            "plan": None if self.plan is None else self.plan.to_json(),
            "net": self.model.net.state_dict(),
            "guide": self.guide.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "events": [event.state_dict() for event in self.events],
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved fit: cut as it was cut, then load tensors and counters.

        Raises:
            CheckpointError: the state belongs to a fit with other settings or another network.
        """
        if missing := {"epoch", "config", "net", "guide", "optimiser", "events"} - state.keys():
            raise CheckpointError(f"the checkpoint is not one of a fit (no {min(missing)}): give one that fit() has written")
        mine = _settings(self.config)
        if changed := [k for k in mine if k in state["config"] and state["config"][k] != mine[k]]:
            k = changed[0]
            raise CheckpointError(
                f"the checkpoint was made with {k}={state['config'][k]!r}, this fit has {mine[k]!r}: "
                "use the same settings or start afresh"
            )
        if len(state["events"]) != len(self.events):
            raise CheckpointError(
                f"the checkpoint was made with {len(state['events'])} events, this fit has {len(self.events)}: "
                "use the same or start afresh"
            )
        if state["plan"] is not None:
            self.cut(PruningPlan.from_json(state["plan"]))
        try:
            self.model.net.load_state_dict(state["net"])
            self.guide.load_state_dict(state["guide"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint does not fit this model: {str(error).splitlines()[0]}") from error
        for event, saved in zip(self.events, state["events"], strict=True):
            event.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.history = list(state["history"])


def _settings(config: FitConfig) -> dict[str, Any]:
    """What a resumed fit must have been told alike; it may go on on another device."""
    return {name: plain(getattr(config, name)) for name in config.__dataclass_fields__ if name != "device"}


def fit(
    model: BayesianModel,
    guide: Any,
    data: Data,
    *,
    config: FitConfig | None = None,
    events: Sequence[Event] = (),
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
        events: run beside the gradient steps, see :mod:`pyrobnn.inference.events`.
        terms: added to the loss, see :mod:`pyrobnn.inference.terms`.
        site_weights: factors on the KL by site.
        checkpoint: file written after each epoch (to a temporary name, then renamed).
        resume: go on from `checkpoint` if it exists.
        save, state: the same for callers that keep checkpoints themselves.
        progress: show a progress bar with an ETA.
        title: what the bar calls this fit.

    Returns:
        The trained pair, which is the given one unless an event cut it, and the history.

    Raises:
        ConfigError: bad settings. CheckpointError: a checkpoint of another fit.
        NumericalError: NaN or infinity, naming the site.

    The global parameter store and the global RNG state are left as they were.
    """
    config = replace(config or FitConfig(), **settings)
    if resume and checkpoint is not None and Path(checkpoint).exists():
        state = load_checkpoint(checkpoint)
    if checkpoint is not None:
        target = Path(checkpoint)
        save = lambda current: save_checkpoint(current, target)  # noqa: E731
    with local_params(model, guide), torch.random.fork_rng(devices=[]):
        loop = Loop(model, guide, data, config, events, terms, site_weights)
        if state is not None:
            loop.load_state_dict(state)
        for event in loop.events:
            event.on_start(loop)
        with Progress(title, config.epochs * loop.steps_per_epoch, loop.step, enabled=progress) as bar:
            while loop.epoch < config.epochs:
                loop.run_epoch(bar.update)
                bar.epoch(loop.history[-1], config.epochs)
                if save is not None:
                    save(loop.state_dict())
    loop.objective.eval()
    return FitResult(loop.model, loop.guide, loop.history, loop.plan, loop.seconds)
