"""The loop of a fit: gradient steps, epochs, callbacks, cuts, and the state of a checkpoint."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan
from pyrobnn.data import Data
from pyrobnn.errors import CheckpointError, ConfigError
from pyrobnn.guides.function import as_guide_module
from pyrobnn.guides.local import prepare
from pyrobnn.inference import callbacks as hooks
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.objective import Objective
from pyrobnn.inference.optimisers import load_optimiser
from pyrobnn.inference.precision import (
    channels_last,
    choose_layout,
    resolve_precision,
    weights_channels_last,
)
from pyrobnn.inference.shrink import shrink, shrink_optimiser
from pyrobnn.inference.steps import Steps
from pyrobnn.inference.sync_norm import synchronise
from pyrobnn.inference.terms import Term
from pyrobnn.inference.validation import validated
from pyrobnn.model import BayesianModel
from pyrobnn.summary.reading import deterministic_net

READ_EVERY = 0.2  # seconds between looks at what the device has summed; each one waits for it
READ_AFTER = 64  # steps, at most, between two looks: their batches are kept until then, for a step that fails
READ_TOGETHER = 8  # steps between two looks of several processes, which must find a failure at the same step


@dataclass
class Pass:
    """A pass over the training data that is under way.

    Attributes:
        begun: state of the generator when it began, which its order comes from.
        done: batches so far.
        seen: examples so far.
        seconds: spent on it when it was last saved.
    """

    begun: Tensor
    done: int = 0
    seen: int = 0
    seconds: float = 0.0


class Loop(Steps):
    """The state of a running fit; callbacks see the part of it that :class:`FitState` shows.

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
        callbacks: Sequence[Callback] = (),
        terms: Sequence[Term] = (),
        site_weights: dict[str, float | Tensor] | None = None,
    ) -> None:
        super().__init__(config)
        self.data, self.callbacks = data, tuple(callbacks)
        if config.batch_size < 2 * self.processes.size:
            raise ConfigError(
                f"a batch of {config.batch_size} leaves {self.processes.size} processes less than two examples each: take a "
                f"batch size of at least {2 * self.processes.size}"
            )
        # Which images are mirrored in even epochs; not drawn from the generator that shuffles, nor with its seed.
        coins = torch.Generator().manual_seed(config.seed + 1)
        self._sides = torch.rand(len(data.train), generator=coins) < 0.5
        self.epoch = 0
        self.steps_per_epoch = data.train.steps(config.batch_size)
        if config.max_steps is not None:
            self.steps_per_epoch = min(self.steps_per_epoch, max(1, config.max_steps))
        self.history: list[dict[str, Any]] = []
        self._metrics: dict[str, Any] = {}  # of the epoch that is under way
        self.plan: PruningPlan | None = None
        self.seconds = 0.0
        self._pass: Pass | None = None  # the one under way, also where a checkpoint was written in its middle
        self._saved = time.perf_counter()
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
        choose_layout(self.model.bare_net, self.data.example)
        channels_last(self.model.net)
        self.objective.train()
        x, y = next(iter(self.data.train.batches(min(8, len(self.data.train)), device=self.device)))
        self.model.initialise((x, y), self.guide)
        weights_channels_last(self.objective.to(self.device).guide, self.model.bare_net)
        synchronise(self.model.bare_net, self.device)
        self.objective.rebuild()  # first: it may move parameters in memory
        self.renew_step()

    def mean_net(self) -> nn.Module:
        """The plain network at the posterior means; the model's own where nothing in it is random."""
        if self.model.prior is None:
            return self.model.bare_net
        return deterministic_net(self.model, self.guide)

    def run_callbacks(self, hook: str, *arguments: Any) -> None:
        """Call one hook of every callback, in order; what one asks for is done before the next is called."""
        for callback in self.callbacks:
            asked = getattr(callback, hook)(self.view(), *arguments)
            update = FitUpdate(plan=asked) if isinstance(asked, PruningPlan) else asked
            if hook == "on_epoch_end" and not self.processes.alone:  # a cut is decided once
                update = replace(
                    update or FitUpdate(), plan=self.processes.agreed(None if update is None else update.plan)
                )
            if update is not None:
                self.apply(update)

    def view(self) -> FitState:
        """What callbacks see now."""
        return FitState(
            model=self.model,
            guide=self.guide,
            epoch=self.epoch,
            step=self.step,
            steps_per_epoch=self.steps_per_epoch,
            progress=self.progress,
            rates=tuple(group["peak"] * self._rate for group in self.optimiser.param_groups),
            kl_weight=self._kl_weight,
            kl_weights=MappingProxyType(self.objective.site_weights),
            history=hooks.read_only(self.history),
        )

    def apply(self, update: FitUpdate) -> None:
        """Make the change that a callback asked for."""
        owners = {"guide": self.guide, "net": self.model.net, "prior": self.model.prior}
        new = bool(update.terms)
        for name, value in update.tensors.items():
            new |= hooks.assign(owners, name, value, device=self.device)
        for name, value in update.settings.items():
            new |= hooks.assign(owners, name, value, number=False)
        weights = self.objective.site_weights
        for site, weight in update.kl_weights.items():
            new |= site not in weights
            _update(weights, site, weight, self.device)
        self.objective.terms = (*self.objective.terms, *update.terms)
        if new:  # what a step computes is another thing now, not only its numbers
            self.objective.rebuild()
            self.device_step.forget()
        self._metrics.update(update.metrics)
        if update.plan is not None:
            self.cut(update.plan)

    def cut(self, plan: PruningPlan) -> None:
        """Shrink model, guide and optimiser to `plan` (current coordinates)."""
        old = (self.model, self.guide)
        model, guide = shrink(*old, plan)
        self.objective.model, self.objective.guide = model, guide
        optimiser = self.optimiser
        self._place()
        shrink_optimiser(optimiser, old, (model, self.guide), self.optimiser, plan)
        self.plan = plan if self.plan is None else self.plan.compose(plan)
        self.run_callbacks("on_cut", plan)

    def run_epoch(
        self, report: Callable[[int, float], None], save: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """One pass over the training data, or the rest of one, then the callbacks.

        `save` is called with the state every `save_minutes` of the configuration.
        """
        read = time.perf_counter()
        if self._pass is None:
            self.device_step.restart()
            self._good = 0
            self._pass = Pass(self.generator.get_state())
        now, start = self._pass, read - self._pass.seconds
        c = self.config
        batches = self.data.train.examples(
            c.batch_size,
            generator=self.generator,
            augment=c.augment,
            device=self.device,
            channels_last=True,
            # In turns: two epochs show both sides of every image, where drawing would show half of them one side twice.
            mirrored=self._sides ^ bool(self.epoch % 2),
            resume=(now.begun, now.done) if now.done else None,
            share=(self.processes.rank, self.processes.size),
        )
        for batch in itertools.islice(batches, self.steps_per_epoch - now.done):
            now.done += 1
            if batch.total == 1 and now.seen:  # a lone example has no batch statistics
                self.step += 1
                continue
            self.train_step(*batch)
            now.seen += batch.total
            self.run_callbacks("on_batch_end")
            clock = time.perf_counter()
            if self.processes.alone:
                due = clock - read > READ_EVERY or len(self._unread) >= READ_AFTER
            else:  # clocks differ
                due = len(self._unread) >= READ_TOGETHER
            if due:
                report(self.step, self.read().loss / now.seen)
                read = clock
            late = save is not None and clock - self._saved >= 60 * c.save_minutes and now.done < self.steps_per_epoch
            if save is not None and late and (due or self.processes.alone):
                self.read()
                now.seconds = clock - start
                save(self.state_dict())
                self._saved = time.perf_counter()
        sums, seen = self.read(), now.seen
        report(self.step, sums.loss / seen)
        self._same_buffers()
        self._pass = None
        self.epoch += 1
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "loss": sums.loss / seen,
            "nll": sums.nll / seen,
            "kl": sums.kl / seen,
            "kl_weight": self._kl_weight,
            "train_accuracy": sums.correct / seen,
        }
        if self.data.train.labels.ndim > 1 or self.data.train.labels.is_floating_point():
            del row["train_accuracy"]
        if c.validate and len(self.data.valid):
            precision = "fp32" if self.model.autocast is None else "bf16"
            row.update(validated(self.mean_net(), self.data, self.device, precision))
        self.history.append(row)
        self.run_callbacks("on_epoch_end")
        self._same_buffers()  # what was averaged on the way, say
        row.update(self._metrics)
        self._metrics.clear()
        row["seconds"] = time.perf_counter() - start
        self.seconds += row["seconds"]

    def _same_buffers(self) -> None:
        """Statistics of normalisation, and what closed-form updates have set, as the first process has them."""
        kept = set(self.model.held)
        buffers = [value for name, value in self.model.net.named_buffers() if name not in kept]
        self.processes.of_the_first([*buffers, *self.guide.buffers()])

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed fit needs; loadable with `weights_only=True`."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "config": self.config.identity(),
            "bf16": self.model.autocast is not None,
            "generator": self.generator.get_state(),
            "plan": None if self.plan is None else self.plan.to_json(),
            "net": self.model.net.state_dict(),
            "guide": self.guide.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "callbacks": hooks.states(self.callbacks),
            "history": self.history,
            "pass": None if self._pass is None else {**vars(self._pass), **self._middle()},
        }

    def _middle(self) -> dict[str, Any]:
        """What the epoch under way has summed and noted."""
        return {"sums": self.device_step.sums.clone(), "metrics": dict(self._metrics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved fit: cut as it was cut, then load tensors and counters.

        Raises:
            CheckpointError: the state belongs to a fit with other settings or another network.
        """
        if missing := {"epoch", "config", "net", "guide", "optimiser", "callbacks"} - state.keys():
            raise CheckpointError(
                f"the checkpoint is not one of a fit (no {min(missing)}): give one that fit() has written"
            )
        mine = self.config.identity()
        if changed := [k for k in mine if k in state["config"] and state["config"][k] != mine[k]]:
            k = changed[0]
            raise CheckpointError(
                f"the checkpoint was made with {k}={state['config'][k]!r}, this fit has {mine[k]!r}: "
                "use the same settings or start afresh"
            )
        self.model.autocast = torch.bfloat16 if state.get("bf16") else None  # measured once, kept to
        if state["plan"] is not None:
            self.cut(PruningPlan.from_json(state["plan"]))
        try:
            self.model.net.load_state_dict(state["net"])
            self.guide.load_state_dict(state["guide"])
            load_optimiser(self.optimiser, state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint does not fit this model: {str(error).splitlines()[0]}") from error
        hooks.load_states(self.callbacks, state["callbacks"])
        self.generator.set_state(state["generator"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.history = list(state["history"])
        if (middle := state.get("pass")) is not None:
            self._pass = Pass(**{name: middle[name] for name in ("begun", "done", "seen", "seconds")})
            self.device_step.sums.copy_(middle["sums"])
            self._metrics = dict(middle["metrics"])
            self._good = self.read().good


def _update(weights: dict[str, float | Tensor], site: str, value: float | Tensor, device: torch.device) -> None:
    """Set the weight of a site's KL: a tensor of the device, changed in place where it is one already."""
    new = torch.as_tensor(value, dtype=torch.get_default_dtype())
    old = weights.get(site)
    if isinstance(old, Tensor) and old.shape == new.shape:
        old.copy_(new)
    else:
        weights[site] = new.to(device, copy=True)
