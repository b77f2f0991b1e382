"""A method is data: prior, guide, objective, criterion, schedule and events, run by one loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from pyrobnn.errors import ConfigError
from pyrobnn.inference.callbacks import Callback
from pyrobnn.inference.schedules import Constant, Schedule
from pyrobnn.model import BayesianModel
from pyrobnn.priors.base import Prior
from pyrobnn.summary.types import Posterior

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelTable
    from pyrobnn.pipeline.run import Run
    from pyrobnn.pipeline.sparsity import Zeros


@dataclass(frozen=True)
class Request:
    """What a run is asked for; see :func:`~pyrobnn.compress` for the meaning of each.

    Raises:
        ConfigError: a value outside its range.
    """

    method: str = "ard"
    target_macs: float | None = None
    target_params: float | None = None
    max_drop: float | None = None
    epochs: int | None = None
    minutes: float | None = None
    seed: int = 0
    min_channels: int = 1
    round_to: int | None = None
    estimator: str | None = None
    precision: str = "auto"
    device: str = "auto"
    target_nonzero: float | None = None

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if isinstance(value := getattr(self, name), np.generic):  # no checkpoint or report can hold it
                object.__setattr__(self, name, value.item())
        for name in ("target_macs", "target_params", "target_nonzero"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is the share that may be left, between 0 and 1, got {value:g}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise ConfigError(f"--max-drop is in percentage points, from 0 to 100, got {self.max_drop:g}")
        if self.epochs is not None and self.epochs < 2:
            raise ConfigError(f"--epochs must be at least 2 (one to infer, one to tune), got {self.epochs}")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"--minutes must be positive and finite, got {self.minutes:g}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed must be from 0 to 2**63 - 1, got {self.seed}")
        if self.has_budget and self.max_drop is not None:
            raise ConfigError(
                "--max-drop looks for the smallest network within a drop, --target-macs and --target-params say its "
                "size: give one or the other"
            )
        if self.epochs is not None and self.minutes is not None:
            raise ConfigError("give --epochs or --minutes, not both")
        if self.min_channels < 1:
            raise ConfigError(f"--min-channels must be at least 1, got {self.min_channels}")
        if self.round_to is not None and self.round_to < 1:
            raise ConfigError(f"--round-to must be at least 1, got {self.round_to}")
        if self.estimator not in (None, "weight", "local", "moments"):
            raise ConfigError(f"--estimator must be weight, local or moments, got {self.estimator!r}")

    @property
    def has_budget(self) -> bool:
        """A fixed size was asked for."""
        return self.target_macs is not None or self.target_params is not None

    @property
    def target(self) -> dict[str, float]:
        """The targets given, for the report."""
        names = ("target_macs", "target_params", "target_nonzero", "max_drop")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def _full_kl(number: int, large: bool) -> Schedule:
    return Constant(1.0)


def _no_events(run: Any, number: int) -> list[Callback]:
    return []


@dataclass(frozen=True)
class Reading:
    """What a method may look at when channels are judged, after one round's fit.

    Attributes:
        run: of the run directory, data and settings.
        number: of the round, from 0.
        net: the plain network at the posterior means, BatchNorm statistics measured again.
        model, guide: the fitted pair.
        events: of the fit, with what they remember.
        posterior: what :func:`~pyrobnn.summarize` made of the pair.
    """

    run: Run
    number: int
    net: nn.Module
    model: BayesianModel
    guide: Any
    events: list[Callback]
    posterior: Posterior


@dataclass(frozen=True)
class Method:
    """One published system (or our own) as data.

    Attributes:
        name: what `--method` takes.
        title: one line for `pyrobnn methods`.
        source: the paper, and how much of it could be read.
        cut_where: the rule in words.
        prior: makes the prior; None for point weights (a control, or MAP by weight decay).
        guide: makes the guide of a model.
        rule, threshold: the cut rule of :func:`~pyrobnn.plan` where no target is given.
        infer: settings of the fits of the posterior (fields of
            :class:`~pyrobnn.inference.config.FitConfig`) for networks trained by Adam.
        infer_large: what differs for large networks with BatchNorm.
        kl: KL weight over one round's fit, given the round's number (from 0) and whether the network is
            a large one; 1 is the ELBO.
        infer_share: part of the epochs after dense training that goes to inference.
        rounds: number of train-and-cut rounds.
        infer_share_large, rounds_large: the same for large networks, where they differ.
        events: makes the events of one round, given the run and the round's number (from 0); what
            they remember goes on from round to round.
        estimator, estimator_large: default estimators, for small and for large networks.
        read: judges the channels where the posterior's own statistic is not what the method reads;
            returns the posterior with its scores. None: what `summarize` found.
        usable: the groups that the method can judge, of a network and its table; the others are refused
            with their reason, before anything is trained. None: all.
        stops: without a target, stops by itself when validation accuracy would be lost.
        distil: weight of distillation from the dense network during inference.
        temperature: of distillation; None is 2 for small and 4 for large networks.
        blends: weight of distillation on blends of training images while the compact network is tuned, see
            :class:`~pyrobnn.inference.blends.Blends`; 0 is none.
        cutout: side of the square that is hidden in every image while the compact network is tuned, as a share of the
            image's shorter side, below 1; the teacher sees the same image. 0 is none.
        zeros: for methods that decide weight by weight: which single weights of the cut network stay, given
            the run (see :mod:`pyrobnn.pipeline.sparsity`); the others are zero from then on.
        road: how the method goes from a dense to a compact network; None is the common road.

    Raises:
        ConfigError: `cutout` is no share.
    """

    name: str
    title: str
    source: str
    cut_where: str
    prior: Callable[[], Prior | None]
    guide: Callable[[BayesianModel], Any]
    rule: str = "snr"
    threshold: float | None = None
    infer: Mapping[str, Any] = field(default_factory=dict)
    infer_large: Mapping[str, Any] = field(default_factory=dict)
    kl: Callable[[int, bool], Schedule] = _full_kl
    infer_share: float = 0.4
    rounds: int = 4
    infer_share_large: float | None = None
    rounds_large: int | None = None
    events: Callable[[Any, int], list[Callback]] = _no_events
    estimator: str = "weight"
    estimator_large: str = "weight"
    read: Callable[[Reading], Posterior] | None = None
    usable: Callable[[nn.Module, ChannelTable], ChannelTable] | None = None
    stops: bool = False
    distil: float = 0.5
    temperature: float | None = None
    blends: float = 0.0
    cutout: float = 0.0
    zeros: Callable[[Any], Zeros] | None = None
    road: Callable[..., None] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.cutout < 1:
            raise ConfigError(f"cutout is a share of the image's shorter side, from 0 to below 1, got {self.cutout:g}")
