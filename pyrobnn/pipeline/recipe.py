"""`Recipe`: how a network of one kind is trained (optimisers, rates, shares of the epochs, distillation).

The numbers are those of `docs/results` and of the papers; a method changes what it needs, a run what it is told
(`recipe=` of :func:`~pyrobnn.compress`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from torch import nn

from pyrobnn.errors import ConfigError
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.recipe import kind_of
from pyrobnn.inference.schedules import OneCycle, WarmUp

TUNE_LR = 0.01  # of Muon, for deep networks: share of a kernel's norm


@dataclass(frozen=True)
class Recipe:
    """What a run is trained with; of the three fits, epochs, seed, device, precision, estimator and KL are set by the run.

    Attributes:
        dense, infer, tune: optimiser, rates and their schedule where the dense network is trained, where the posterior
            is fitted, and where the compact network is tuned.
        guide: settings of the method's guide, such as `init_scale`.
        estimator: of the ELBO, see :class:`~pyrobnn.inference.elbo.ELBO`.
        kl_weight: that a fit of the posterior ends with; 1 is the ELBO, less a cold posterior.
        kl_warmup: share of a fit over which it rises from 0, see `kl_rewarm`.
        kl_rewarm: rise anew in every round; else in the first only, and later ones go on at the weight reached.
        epochs, epochs_given: in all, where nothing else is said: of a network that must be trained, of a given one.
        dense_share: part of the epochs that trains the dense network.
        infer_share: part of the others that fits posteriors; 0 judges the network as it is.
        rounds: of inference and cutting, at the most.
        pass_share: share of the training images that an epoch of inference shows.
        batch_size: examples per step; None is 128, or less for small data.
        distillation: weight of distillation from the dense network while the compact one is tuned.
        infer_distillation: the same while plain networks train between cuts. A posterior has the likelihood of the data
            alone (0): T² KL at T = 4 would have many times its curvature, and no loss would be in nats.
        temperature: of distillation. A small network cannot fit softer targets as well: LeNet-300-100 at 3 % of its weights, 20 epochs, error on validation images: 2.0 % at temperature
            4, 1.6 % at 2, 1.8 % at 1; LeNet-5 at 0.6 %: no difference between 4 and 2.
        blends: weight of mixup distillation while the compact network is tuned, see
            :class:`~pyrobnn.inference.mixup.MixupDistillation`; 0 is none.
        cutout: side of the square that is hidden in every image while the compact network is tuned, as a share of the
            image's shorter side, below 1; the teacher sees the same image. 0 is none.
        mix: images that the compact network is tuned on are mixed (`"mixup"` or `"cutmix"`), so that it learns from the
            dense network's outputs alone, whatever `distillation` is: function matching (Beyer et al. 2022).
        smoothing: of labels, while a plain network trains: share of their loss that goes to all classes alike.
        average: share of the steps, the last, over which weights are averaged where a plain network trains, see
            :class:`~pyrobnn.inference.averaging.WeightAverage`; 0 is none.
        draws: of the compact network's posterior, when it is measured.

    Raises:
        ConfigError: a share outside its range, or no such `mix`.
    """

    dense: FitConfig
    infer: FitConfig
    tune: FitConfig
    guide: Mapping[str, Any] = field(default_factory=dict)
    estimator: str = "weight"
    kl_weight: float = 1.0
    kl_warmup: float = 0.0
    kl_rewarm: bool = False
    epochs: int = 25
    epochs_given: int = 20
    dense_share: float = 0.24
    infer_share: float = 0.4
    rounds: int = 4
    pass_share: float = 1.0
    batch_size: int | None = None
    distillation: float = 0.7
    infer_distillation: float = 0.0
    temperature: float = 2.0
    blends: float = 0.0
    cutout: float = 0.0
    mix: str = ""
    smoothing: float = 0.0
    average: float = 0.0
    draws: int = 50

    def __post_init__(self) -> None:
        if not 0 <= self.cutout < 1:
            raise ConfigError(f"cutout is a share of the image's shorter side, from 0 to below 1, got {self.cutout:g}")
        if self.mix not in ("", "mixup", "cutmix"):
            raise ConfigError(f"mix of a recipe is mixup, cutmix or empty, got {self.mix!r}")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing of a recipe is a share from 0 to below 1, got {self.smoothing:g}")
        for name in ("dense_share", "infer_share", "kl_warmup", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} of a recipe is a share, from 0 to 1, got {getattr(self, name):g}")
        if not 0 < self.pass_share <= 1:
            raise ConfigError(f"pass_share of a recipe is a share above 0, up to 1, got {self.pass_share:g}")
        if self.rounds < 1 or self.temperature <= 0 or (self.batch_size is not None and self.batch_size < 1):
            raise ConfigError(
                "a recipe needs rounds and batch_size of at least 1 and a positive temperature, got "
                f"{self.rounds}, {self.batch_size}, {self.temperature:g}"
            )

    def kl_schedule(self, number: int) -> WarmUp:
        """The KL weight over the fit of a round (from 0)."""
        return WarmUp(self.kl_warmup if number == 0 or self.kl_rewarm else 0.0, 0.0, self.kl_weight)

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """With other values of some fields; `tune.lr` is the field `lr` of `tune`.

        Raises:
            ConfigError: as the class does, or an unknown name; the message has the near ones.
        """
        changed: dict[str, Any] = {}
        for path, value in values.items():
            name, _, inner = path.partition(".")
            part = changed.get(name, _known(self, name, path))
            if inner and isinstance(part, Mapping):
                value = {**part, inner: value}
            elif inner:
                _check_kind(_known(part, inner, path), value, path)
                value = replace(part, **{inner: value})
            else:
                _check_kind(part, value, path)
            changed[name] = value
        return replace(self, **changed)

    def identity(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {entry.name: _data(getattr(self, entry.name)) for entry in fields(self)}


@dataclass(frozen=True)
class Recipes:
    """A method's recipes by kind of network, see :func:`~pyrobnn.inference.recipe.kind_of`."""

    small: Recipe
    deep: Recipe

    def of(self, net: nn.Module) -> Recipe:
        """The one for this network."""
        found: Recipe = getattr(self, kind_of(net))
        return found

    def with_values(self, values: Mapping[str, Any]) -> Recipes:
        """Both with other values, see :meth:`Recipe.with_values`."""
        return Recipes(self.small.with_values(values), self.deep.with_values(values))


def _known(whole: Any, name: str, path: str) -> Any:
    names = [entry.name for entry in fields(whole)] if is_dataclass(whole) else []
    if name not in names:
        near = difflib.get_close_matches(name, names, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
        raise ConfigError(f"a recipe has no {path!r}: {hint}")
    return getattr(whole, name)


def _check_kind(old: Any, new: Any, path: str) -> None:
    if isinstance(old, int | float) and not (new is None or isinstance(new, int | float)):
        raise ConfigError(f"{path} of a recipe is a number, such as {old:g}, got {new!r}")
    if (is_dataclass(old) or isinstance(old, Mapping)) and not isinstance(new, type(old) | Mapping):
        raise ConfigError(f"{path} of a recipe has parts, such as {path}.lr: give one of them, got {new!r}")


def _data(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **{f.name: _data(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): _data(part) for key, part in value.items()}
    return value


def recipes(*, small: Mapping[str, Any] | None = None, deep: Mapping[str, Any] | None = None, **both: Any) -> Recipes:
    """The usual recipes with what a method changes: in both (as keywords), and in one.

    A small network is trained by Adam. Deep normalised ones are trained by SGD and tuned by Muon: in the short tuning of
    `benchmarks/tuning.py` the best of three rates of Muon ends a point above the best of SGD (92.1 and 91.1 % of the
    training images), in both cases the lowest one; the rate here is for more epochs than those three.
    """
    return Recipes(SMALL.with_values({**both, **(small or {})}), DEEP.with_values({**both, **(deep or {})}))


_CYCLE = OneCycle(0.2, floor=0.01)
SMALL = Recipe(
    dense=FitConfig(lr=2e-3, lr_schedule=_CYCLE),
    infer=FitConfig(lr=1e-3, lr_schedule="constant"),
    tune=FitConfig(lr=6e-3, lr_schedule=_CYCLE),  # what is left takes larger steps than the dense network
)
DEEP = Recipe(
    dense=FitConfig(optimizer="sgd", lr=0.1, weight_decay=5e-4, lr_schedule=OneCycle(0.3)),
    infer=FitConfig(lr=2e-4, lr_schedule="constant"),
    tune=FitConfig(optimizer="muon", lr=TUNE_LR, weight_decay=5e-4, lr_schedule=OneCycle(0.15)),
    epochs=42,
    epochs_given=12,
    dense_share=0.7,
    temperature=4.0,
    draws=20,
)
