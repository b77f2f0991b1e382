"""`Context`: what all stages of a run share, such as configuration, data and device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pyrobnn.channels import ChannelTable, PruningPlan
from pyrobnn.channels.parts import COSTS, Cost
from pyrobnn.channels.planner import Limits
from pyrobnn.criteria.registry import CRITERIA
from pyrobnn.data import Data
from pyrobnn.guides.base import Guide
from pyrobnn.guides.function import NoLatents
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.inference.averaging import WeightAverage
from pyrobnn.inference.batchnorm import reestimate_batchnorm
from pyrobnn.inference.callbacks import Callback
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.fit import FitResult, fit
from pyrobnn.inference.precision import cpu_has_bf16, resolve_device, resolve_precision
from pyrobnn.inference.progress import say
from pyrobnn.inference.terms import LabelSmoothing, Term
from pyrobnn.likelihoods import Likelihood
from pyrobnn.model import BayesianModel
from pyrobnn.pipeline.config import CompressionConfig
from pyrobnn.pipeline.distillation import Teacher
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.recipe import Recipe
from pyrobnn.pipeline.schedule import Epochs
from pyrobnn.pipeline.scoring import Scoring
from pyrobnn.pipeline.state import State, Tensors, VariationalState, settled
from pyrobnn.pipeline.store import RunStore
from pyrobnn.priors.base import Prior
from pyrobnn.tasks import Task


@dataclass(frozen=True)
class Context(Scoring):
    """What all stages of a run see; nothing in it changes from stage to stage.

    Attributes:
        config, method, recipe: what was asked for.
        epochs: how they are shared between the phases.
        data: training, validation and test images.
        template: the dense network as it was given, for its architecture.
        table: its channel table.
        store: where finished stages are kept, and earlier ones are read from.
        trained: the network was given with its weights.
        task: what the targets are: their likelihood, the figure that counts, how a teacher speaks.
        device, autocast: where and in which dtype networks run (None: fp32).
        teacher: what the dense network teaches.
    """

    config: CompressionConfig
    method: Method
    recipe: Recipe
    epochs: Epochs
    data: Data
    template: nn.Module
    table: ChannelTable
    store: RunStore
    trained: bool
    task: Task
    device: torch.device = field(init=False)
    autocast: torch.dtype | None = field(init=False)
    teacher: Teacher = field(init=False)
    _tables: dict[str, ChannelTable] = field(init=False, default_factory=dict)
    _fitted: list[tuple[VariationalState, BayesianModel, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        device = resolve_device(self.config.device)
        autocast = resolve_precision(self.config.precision, device, self.template, self.data.example)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "autocast", autocast)
        quick = torch.bfloat16 if self._may_round and device.type == "cpu" and cpu_has_bf16() else autocast
        learned = self.epochs.tune + self.epochs.retune
        if self.recipe.infer_distillation:
            learned += sum(self.epochs.infer)
        teacher = Teacher(self.recipe, self.data, device, autocast, quick, epochs=learned, task=self.task)
        object.__setattr__(self, "teacher", teacher)

    # What was asked for

    @property
    def _may_round(self) -> bool:
        return self.config.precision == "auto"

    @property
    def inference_dtype(self) -> torch.dtype | None:
        """The precision of passes without gradients that are made in every step."""
        return self.teacher.inference_dtype

    @property
    def likelihood(self) -> Likelihood:
        """Of the targets."""
        return self.task.likelihood

    @property
    def limits(self) -> Limits:
        """What every cut must leave."""
        return limits(self.config)

    @property
    def dense_cost(self) -> Cost:
        """Of the dense network."""
        return self.table.cost(None)

    @property
    def estimator(self) -> str:
        """The one asked for, or the method's own."""
        return self.config.estimator or self.recipe.estimator

    @property
    def threshold(self) -> float | None:
        """The cut line of the method's own rule, where no target sets another one."""
        if self.config.target:
            return None
        if self.method.threshold is not None or self.method.rule == "fraction":
            return self.method.threshold
        if self.method.rule not in CRITERIA:  # a pipeline that chooses by itself, such as by a gap
            return None
        return {"snr": 1.0}.get(self.method.rule, CRITERIA[self.method.rule].threshold)

    def seed(self, name: str) -> int:
        """A seed for a purpose, so that no stage depends on how many draws another made."""
        digest = hashlib.sha256(f"{self.config.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def say(self, text: str, style: str = "yellow") -> None:
        """One line to the terminal, unless the run is quiet; yellow is for what was given up or missed."""
        if self.config.progress:
            say(text, style)

    # Networks

    def table_of(self, plan: PruningPlan) -> ChannelTable:
        """Channel table of the network that a plan leaves."""
        if plan.is_full:
            return self.table
        key = repr(sorted(plan.keep.items()))
        if key not in self._tables:
            self._tables.clear()  # one is enough: rounds only go on
            self._tables[key] = self.table.after(plan)
        return self._tables[key]

    def left(self, plan: PruningPlan) -> dict[str, float]:
        """Share of the dense parameters, MACs and, where layers were timed, milliseconds that a plan leaves."""
        masks = {}
        for name, units in plan.keep.items():
            masks[name] = torch.zeros(plan.channels[name], dtype=torch.float64)
            masks[name][units] = 1.0
        cost, dense = self.table.cost(masks), self.dense_cost
        found = {name: (float(getattr(cost, name)), float(getattr(dense, name))) for name in COSTS}
        return {name: left / whole for name, (left, whole) in found.items() if whole}

    def model_of(self, state: State, only: str | None = None) -> tuple[BayesianModel, Any]:
        """Model and guide of the current network, where the last round left them; with latents on one group `only`."""
        past = state.variational
        if only is None and past is not None and past.guide is not None:
            only = past.only
        prior: Any = self.method.prior()
        if past is not None and isinstance(prior, Prior):
            prior.load_state_dict(dict(past.prior))
        if only is not None:
            prior = replace(prior, groups=[only])
        model = BayesianModel(
            state.net,
            prior,
            data_size=len(self.data.train),
            groups=self.table_of(state.plan),
            likelihood=self.likelihood,
        )
        guide = self.method.guide(model, **self.recipe.guide)
        if past is not None and past.guide is not None and past.net is not None:
            if not isinstance(guide, Guide | NoLatents):  # an AutoGuide: what shrink leaves of it is a mean-field guide
                guide = self._foreign(guide, model, past.guide)
            guide.load_state_dict(past.guide)
            if past.start:
                guide.start = past.start
            model.net.load_state_dict(past.net)
        return model, guide

    def _foreign(self, guide: Any, model: BayesianModel, stored: Tensors) -> Any:
        """The guide with its parameters made; after a cut, the mean-field guide that `shrink` puts in its place."""
        field = MeanField(model)
        if field.state_dict().keys() == stored.keys():
            return field
        model.initialise(next(self.data.train.batches(2, device=self.device)), guide)
        return guide

    def keep_fitted(self, fitted: VariationalState, model: BayesianModel, guide: Any) -> None:
        """Keep the pair that a variational state was read from, until :meth:`fitted` asks for it."""
        self._fitted[:] = [(fitted, model, guide)]

    def fitted(self, state: State) -> tuple[BayesianModel, Any]:
        """The fitted pair of a state; made anew where this process has not just fitted it."""
        kept = [pair for past, *pair in self._fitted if past is state.variational]
        self._fitted.clear()
        return (kept[0][0], kept[0][1]) if kept else self.model_of(state)

    def settled(self, net: nn.Module) -> nn.Module:
        """A network, in place, as a state holds it; see :func:`~pyrobnn.pipeline.state.settled`."""
        return settled(net, self.template)

    def refreshed(self, net: nn.Module, data: Data | None = None) -> nn.Module:
        """The network with BatchNorm statistics measured again, in place, on what it was trained with."""
        split = (data or self.data).train
        return reestimate_batchnorm(net.to(self.device), split, device=self.device, autocast=self.autocast)

    # Fits

    def fit_config(self, base: FitConfig, seed: str, epochs: int, **settings: Any) -> FitConfig:
        """Settings of the recipe, with what all fits of this run share."""
        return replace(
            base,
            epochs=epochs,
            batch_size=self.epochs.batch_size,
            precision=self.config.precision,
            device=self.config.device,
            seed=self.seed(seed),
            same_noise=self.config.same_noise,
            **settings,
        )

    def fit(
        self, stage: str, model: BayesianModel, guide: Any, config: FitConfig, data: Data | None = None, **options: Any
    ) -> FitResult:
        """The fit of a stage; what it has done is stored after each epoch but the last, whose result the stage stores."""

        def save(fit_state: dict[str, Any]) -> None:
            if fit_state["epoch"] < config.epochs:
                self.store.save_fit(stage, fit_state)

        return fit(
            model,
            guide,
            data or self.data,
            config=config,
            save=save,
            state=self.store.fit_state(stage),
            progress=self.config.progress,
            title=stage,
            **options,
        )

    def train_plain(
        self,
        stage: str,
        net: nn.Module,
        epochs: int,
        base: FitConfig,
        *,
        seed: str,
        dense: nn.Module | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> tuple[nn.Module, list[dict[str, float]]]:
        """A trained copy of a plain network, with distillation if there is a `dense` one; and what each epoch was like."""
        model = BayesianModel(net, data_size=len(self.data.train), likelihood=self.likelihood)
        terms: list[Term] = []
        data, recipe, labels = self.data, self.recipe, 1.0
        if dense is not None:
            terms = [*self.teacher.distillation(dense, self.teacher.weight), *self.teacher.mixup(dense)]
            data, labels = self.teacher.data, 1.0 - self.teacher.weight
        if recipe.smoothing and self.task.softens:
            terms.append(LabelSmoothing(recipe.smoothing, labels))
        if recipe.average:
            callbacks = [*callbacks, WeightAverage(recipe.average)]
        config = self.fit_config(base, seed, epochs)
        result = self.fit(stage, model, NoLatents(), config, data, terms=terms, callbacks=callbacks)
        net = self.refreshed(result.model.net, data) if recipe.average else result.model.net
        return self.settled(net), result.history

    def settings(self) -> dict[str, Any]:
        """What was trained and inferred with, for the report; a KL weight below 1 is a cold posterior."""
        if self.config.from_scratch is not None:
            return {"batch_size": self.epochs.batch_size}
        recipe = self.recipe
        return {
            **{name: getattr(recipe.infer, name) for name in ("optimizer", "lr", "guide_lr", "weight_decay")},
            "lr_schedule": recipe.identity()["infer"]["lr_schedule"],
            "estimator": self.estimator,
            "kl_weight": recipe.kl_weight,
            **self.teacher.settings(),
            "batch_size": self.epochs.batch_size,
            "rounds": len(self.epochs.infer),
            "tune_optimizer": recipe.tune.optimizer,
            "tune_lr": recipe.tune.lr,
            **({} if self.config.round_to is None else {"round_to": self.config.round_to}),
            **({"method": dict(self.method.settings)} if self.method.settings else {}),
        }


def limits(config: CompressionConfig) -> Limits:
    """What every cut must leave, when the multiple of `--round-to auto` is known."""
    assert not isinstance(config.round_to, str)
    return Limits(config.min_channels, config.round_to)
