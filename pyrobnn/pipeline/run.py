"""One run of one method: the phases that all roads are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pyrobnn.channels import PruningPlan, compact
from pyrobnn.data import Data
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.callbacks import Callback, load_states, states
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.fit import FitResult, fit
from pyrobnn.inference.progress import cut_line
from pyrobnn.inference.record import ChannelHistory
from pyrobnn.inference.shrink import shrink
from pyrobnn.inference.terms import Term
from pyrobnn.model import BayesianModel
from pyrobnn.pipeline.journal import Carry
from pyrobnn.pipeline.method import Reading
from pyrobnn.pipeline.run_state import RunState, in_original, state_of
from pyrobnn.pipeline.sparsity import KeepZeros
from pyrobnn.priors.base import Prior
from pyrobnn.summary.state import from_state, to_state
from pyrobnn.summary.summarize import deterministic_net, summarize


class Run(RunState):
    """What a road works with; see :func:`~pyrobnn.pipeline.common.common_road`."""

    # Fits

    def settings_of(self, base: FitConfig, step: str, epochs: int, **settings: Any) -> FitConfig:
        """Settings of the recipe, with what all fits of this run share."""
        return replace(
            base,
            epochs=epochs,
            batch_size=self.epochs.batch_size,
            precision=self.request.precision,
            device=self.request.device,
            seed=self.seed(step),
            **settings,
        )

    def fit(
        self, step: str, model: BayesianModel, guide: Any, config: FitConfig, data: Data | None = None, **options: Any
    ) -> FitResult:
        """A fit whose epochs are in the journal."""
        return fit(
            model,
            guide,
            data or self.data,
            config=config,
            save=self.journal.save_fit,
            state=self.journal.fit_state,
            progress=self.progress,
            title=step,
            **options,
        )

    def train_point(
        self, step: str, net: nn.Module, epochs: int, *, teacher: nn.Module | None, events: Sequence[Callback] = ()
    ) -> nn.Module:
        """Train a plain network, with distillation if there is a teacher."""
        model = BayesianModel(net, data_size=len(self.data.train), likelihood=self.likelihood)
        terms: list[Term] = []
        data = self.data
        if teacher is not None:
            terms = [*self.teaching.answers(teacher, self.recipe.distillation), *self.teaching.between(teacher)]
            data = self.teaching.data
        config = self.settings_of(self.recipe.dense if teacher is None else self.recipe.tune, step, epochs)
        result = self.fit(step, model, NoLatents(), config, data, terms=terms, callbacks=events)
        return deterministic_net(result.model, result.guide)

    def threshold(self) -> float | None:
        """The cut line of the method's own rule, where no target sets another one."""
        if self.request.target:
            return None
        usual = {"snr": 1.0, "inclusion": 0.5, "bmr": 0.0}
        return usual.get(self.method.rule) if self.method.threshold is None else self.method.threshold

    def estimator(self) -> str:
        """The one asked for, or the method's own."""
        return self.request.estimator or self.recipe.estimator

    def settings(self) -> dict[str, Any]:
        """What the inference was run with, for the report; a KL weight below 1 is a cold posterior."""
        if self.carry.get("scratch"):
            return {"batch_size": self.epochs.batch_size}
        recipe = self.recipe
        return {
            **{name: getattr(recipe.infer, name) for name in ("optimizer", "lr", "guide_lr", "weight_decay")},
            "lr_schedule": recipe.identity()["infer"]["lr_schedule"],
            "estimator": self.estimator(),
            "kl_weight": recipe.kl_weight,
            **self.teaching.settings(),
            "batch_size": self.epochs.batch_size,
            "rounds": len(self.epochs.infer),
            "tune_optimizer": recipe.tune.optimizer,
            "tune_lr": recipe.tune.lr,
            **({"method": dict(self.method.settings)} if self.method.settings else {}),
        }

    def bayesian(self, only: str | None = None) -> tuple[BayesianModel, Any]:
        """Model and guide of the current network, where the last round left them."""
        net = self.net()
        prior: Any = self.method.prior()
        if self.carry.get("prior") is not None:
            prior.load_state_dict(self.carry["prior"])
        if only is not None:
            prior = replace(prior, groups=[only])
        model = BayesianModel(
            net,
            prior,
            data_size=len(self.data.train),
            groups=self.current_table(),
            likelihood=self.likelihood,
        )
        guide = self.method.guide(model, **self.recipe.guide)
        if self.carry.get("guide") is not None:
            guide.load_state_dict(self.carry["guide"])
            if self.carry.get("point") is not None:
                model.net.load_state_dict(self.carry["point"])
        return model, guide

    # Steps

    def start(self) -> None:
        """Dense network: given weights as they are, else trained."""

        def given(carry: Carry) -> Carry:
            return {"dense": state_of(self.template), "epochs": {"dense": 0, "infer": 0, "tune": 0}, "rounds": []}

        def trained(carry: Carry) -> Carry:
            epochs = self.epochs.dense
            net = self.train_point("dense", self.template, epochs, teacher=None)
            return {"dense": state_of(net), "epochs": {"dense": epochs, "infer": 0, "tune": 0}, "rounds": []}

        def measure(carry: Carry) -> Carry:
            base = self.validation_accuracy(self.net("dense")) if len(self.data.valid) else None
            return {"net": carry["dense"], "base": base, "guide": None, "point": None}

        self.journal.step("dense", given if self.trained else trained)
        self.journal.step("dense-measured", measure)

    def infer(self, number: int, *, epochs: float | None = None, only: str | None = None) -> None:
        """Fit the posterior of the current network; read it off.

        Args:
            number: of the round, from 0.
            epochs: passes over the training data, possibly a fraction (default: the schedule's).
            only: place noise on this group alone.
        """

        def function(carry: Carry) -> Carry:
            step = f"infer {number + 1}"
            model, guide = self.bayesian(only)
            passes = float(self.epochs.infer[number]) if epochs is None else epochs
            steps = math.ceil(len(self.data.train) / self.epochs.batch_size)
            whole = math.ceil(passes)
            config = self.settings_of(
                self.recipe.infer,
                step,
                whole,
                max_steps=math.ceil(passes * steps / whole),
                estimator=self.estimator(),
                kl_schedule=self.recipe.kl_schedule(number),
                validate=False,
            )
            terms = self.teaching.answers(self.net("dense"), self.recipe.infer_distillation)
            events = self.method.events(self, number)
            if "events" in carry:
                load_states(events, carry["events"])
            history = ChannelHistory()
            result = self.fit(step, model, guide, config, terms=terms, callbacks=[*events, history])
            posterior = summarize(result.model, result.guide, seed=self.seed(step))
            if only is not None:
                posterior.channels = {only: posterior.channels[only]}
            spent = {**carry["epochs"], "infer": carry["epochs"]["infer"] + passes}
            net = self.refreshed(deterministic_net(result.model, result.guide))
            if self.method.read is not None:
                reading = Reading(self, number, net, result.model, result.guide, events, posterior)
                posterior = self.method.read(reading)
            kinds = {name: channel.statistic for name, channel in posterior.channels.items()}
            same = all(history.kinds[name] == kind for name, kind in kinds.items())
            earlier = [{name: record[name] for name in kinds} for record in history.records[:-1]] if same else []
            return {
                "net": state_of(net),
                "point": state_of(result.model.net),
                "prior": result.model.prior.state_dict() if isinstance(result.model.prior, Prior) else None,
                "guide": {k: v.detach().cpu() for k, v in result.guide.state_dict().items()},
                "latest": to_state(posterior),
                "earlier": earlier,
                "events": states(events),
                "epochs": spent,
                "recovered": self.validation_accuracy(net) if len(self.data.valid) else None,
            }

        self.journal.step(f"infer {number + 1}", function)

    def cut(self, number: int, choose: Callable[[], PruningPlan], *, fold: bool = False) -> None:
        """Cut network, guide and posterior to the plan that `choose` makes (coordinates of the current network).

        A resumed run has the state of a later step here, so the choice is part of the step.
        With `fold` the noise is over: its mean is in the weights, and the next round starts a new one.
        """

        def function(carry: Carry) -> Carry:
            before, plan = self.plan, choose()
            after = before.compose(plan)
            latest = from_state(carry["latest"]).decide(plan, self.threshold(), round=number)
            merged = latest if "posterior" not in carry else self.posterior().merge(latest, before)
            read = {name: channel.snr for name, channel in latest.channels.items()}
            records = [in_original(record, before) for record in (*carry["earlier"], read)]
            merged.history = [*self.posterior().history, *records]
            net = compact(self.net(), plan, None, groups=self.current_table())
            changed: Carry = {
                "net": state_of(self.refreshed(net)),
                "plan": after.to_json(),
                "posterior": to_state(merged),
            }
            if fold:
                changed |= {"guide": None, "point": None}
            elif carry.get("guide") is not None:
                small, small_guide = shrink(*self.bayesian(), plan)
                changed["guide"] = {k: v.detach().cpu() for k, v in small_guide.state_dict().items()}
                changed["point"] = state_of(small.net)
            left = self.left(after)
            entry: dict[str, Any] = {
                "round": number + 1,
                "params": round(left["params"] * self.dense_cost[0]),
                "macs": round(left["macs"] * self.dense_cost[1]),
                "valid_accuracy": self.validation_accuracy(net) if len(self.data.valid) else None,
                "widths": after.widths(),
                "epochs": dict(carry["epochs"]),
            }
            line = cut_line(number + 1, before.widths(), entry["widths"], left, entry["valid_accuracy"])
            self.say(line, "cyan")
            return {**changed, "rounds": [*carry["rounds"], entry]}

        self.journal.step(f"cut {number + 1}", function)

    def tune(self, name: str, epochs: int) -> None:
        """Fine-tune the current plain network with distillation from the dense one.

        What the method zeroes weight by weight is zeroed first and stays so.
        """

        def function(carry: Carry) -> Carry:
            zeros = None if self.method.zeros is None else self.method.zeros(self)
            events = [] if zeros is None else [KeepZeros(zeros.keep)]
            net = self.train_point(name, self.net(), epochs, teacher=self.net("dense"), events=events)
            spent = {**carry["epochs"], "tune": carry["epochs"]["tune"] + epochs}
            accuracy = self.validation_accuracy(net) if len(self.data.valid) else None
            found = {"net": state_of(net), "epochs": spent, "tuned": accuracy}
            return found if zeros is None else {**found, "zeros": zeros.report}

        self.journal.step(name, function)

    def accept(self, name: str, slot: str = "accepted") -> None:
        """Remember the current state as one to come back to."""
        keys = ("net", "plan", "posterior", "rounds", "guide", "point")
        self.journal.step(name, lambda carry: {slot: {key: carry[key] for key in keys if key in carry}})

    def restore(self, name: str, slot: str = "accepted") -> None:
        """Go back to a state that was accepted."""

        def function(carry: Carry) -> Carry:
            blank: Carry = {"plan": None}
            if "posterior" in carry:  # accepted before the first cut: nothing of what it read was decided
                blank["posterior"] = to_state(self.posterior().decide(PruningPlan.full(self.table)))
            return {**blank, **carry[slot]}

        self.journal.step(name, function)
