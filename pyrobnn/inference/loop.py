"""The running fit: gradient steps, epochs, callbacks, cuts, and what a checkpoint holds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan
from pyrobnn.data import Data
from pyrobnn.errors import CheckpointError, NumericalError
from pyrobnn.guides.function import as_guide_module
from pyrobnn.guides.local import prepare
from pyrobnn.inference import callbacks as hooks
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.objective import Objective
from pyrobnn.inference.optimisers import new_optimiser
from pyrobnn.inference.plain import plain
from pyrobnn.inference.precision import (
    as_channels_last,
    channels_last,
    choose_layout,
    resolve_device,
    resolve_precision,
)
from pyrobnn.inference.schedules import schedule
from pyrobnn.inference.shrink import shrink, shrink_optimiser
from pyrobnn.inference.terms import Term
from pyrobnn.inference.validation import validated
from pyrobnn.model import BayesianModel
from pyrobnn.summary.reading import deterministic_net


class Loop:
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
        self.config, self.data, self.callbacks = config, data, tuple(callbacks)
        self.device = resolve_device(config.device)
        self.generator = torch.Generator().manual_seed(config.seed)
        # Which images are mirrored in even epochs; not drawn from the generator that shuffles, nor with its seed.
        coins = torch.Generator().manual_seed(config.seed + 1)
        self._sides = torch.rand(len(data.train), generator=coins) < 0.5
        self.epoch = self.step = 0
        self.steps_per_epoch = data.train.steps(config.batch_size)
        if config.max_steps is not None:
            self.steps_per_epoch = min(self.steps_per_epoch, max(1, config.max_steps))
        self.history: list[dict[str, Any]] = []
        self._metrics: dict[str, Any] = {}  # of the epoch that is under way
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
        choose_layout(self.model.bare_net, self.data.example)
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
        """The plain network at the posterior means; the model's own where nothing in it is random."""
        if self.model.prior is None:
            return self.model.bare_net
        return deterministic_net(self.model, self.guide)

    def run_callbacks(self, hook: str, *arguments: Any) -> None:
        """Call one hook of every callback, in order; what one asks for is done before the next is called."""
        for callback in self.callbacks:
            asked = getattr(callback, hook)(self.view(), *arguments)
            if asked is not None:
                self.apply(FitUpdate(plan=asked) if isinstance(asked, PruningPlan) else asked)

    def view(self) -> FitState:
        """What callbacks see now."""
        return FitState(
            model=self.model,
            guide=self.guide,
            epoch=self.epoch,
            step=self.step,
            steps_per_epoch=self.steps_per_epoch,
            progress=self.progress,
            rates=tuple(group.get("lr", group["peak"]) for group in self.optimiser.param_groups),
            kl_weight=self.objective.kl_weight,
            kl_weights=MappingProxyType(self.objective.site_weights),
            history=hooks.read_only(self.history),
        )

    def apply(self, update: FitUpdate) -> None:
        """Make the change that a callback asked for."""
        owners = {"guide": self.guide, "net": self.model.net, "prior": self.model.prior}
        for name, value in update.tensors.items():
            hooks.assign(owners, name, value)
        for name, value in update.settings.items():
            hooks.assign(owners, name, value, number=False)
        self.objective.site_weights.update(update.kl_weights)
        self.objective.terms = (*self.objective.terms, *update.terms)
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
        self.optimiser = shrink_optimiser(optimiser, old, (model, self.guide), self.optimiser, plan)
        self.plan = plan if self.plan is None else self.plan.compose(plan)
        self.run_callbacks("on_cut", plan)

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
        """One pass over the training data, then the callbacks."""
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
            self.run_callbacks("on_batch_end")
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
        if self.data.train.labels.ndim > 1 or self.data.train.labels.is_floating_point():
            del row["train_accuracy"]
        if c.validate and len(self.data.valid):
            precision = "fp32" if self.model.autocast is None else "bf16"
            row.update(validated(self.mean_net(), self.data, self.device, precision))
        self.history.append(row)
        self.run_callbacks("on_epoch_end")
        row.update(self._metrics)
        self._metrics.clear()
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
            "callbacks": hooks.states(self.callbacks),
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved fit: cut as it was cut, then load tensors and counters.

        Raises:
            CheckpointError: the state belongs to a fit with other settings or another network.
        """
        if missing := {"epoch", "config", "net", "guide", "optimiser", "callbacks"} - state.keys():
            raise CheckpointError(f"the checkpoint is not one of a fit (no {min(missing)}): give one that fit() has written")
        mine = _settings(self.config)
        if changed := [k for k in mine if k in state["config"] and state["config"][k] != mine[k]]:
            k = changed[0]
            raise CheckpointError(
                f"the checkpoint was made with {k}={state['config'][k]!r}, this fit has {mine[k]!r}: "
                "use the same settings or start afresh"
            )
        if state["plan"] is not None:
            self.cut(PruningPlan.from_json(state["plan"]))
        try:
            self.model.net.load_state_dict(state["net"])
            self.guide.load_state_dict(state["guide"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint does not fit this model: {str(error).splitlines()[0]}") from error
        hooks.load_states(self.callbacks, state["callbacks"])
        self.generator.set_state(state["generator"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.history = list(state["history"])


def _settings(config: FitConfig) -> dict[str, Any]:
    """What a resumed fit must have been told alike; it may go on on another device."""
    return {name: plain(getattr(config, name)) for name in config.__dataclass_fields__ if name != "device"}
