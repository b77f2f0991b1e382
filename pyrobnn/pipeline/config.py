"""`CompressionConfig`: the one list of a run's options.

The keywords of :func:`~pyrobnn.compress`, the options of
`pyrobnn compress`, the `target` of a report and the check of a resume are all made from its fields. Nothing heavy is
imported here, so that `pyrobnn --help` is fast.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrobnn.errors import ConfigError
from pyrobnn.pipeline.option import Option, assignment, described, flags, multiple, plain

if TYPE_CHECKING:
    from pyrobnn.channels.plan import PruningPlan


BUDGETS = ("macs", "params", "latency")  # costs of a network that a target may be set for
_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", Path: "a path"}


@dataclass(frozen=True)
class CompressionConfig:
    """Everything that a run can be told, as plain values, checked.

    The meaning of each field is in its metadata, which :meth:`options` lists.

    Raises:
        ConfigError: a value outside its range, or two that contradict each other.
    """

    method: str = field(
        default="ard", metadata=described(str, "See pyrobnn methods; or module:NAME of a Method of your own.")
    )
    weights: str | Path | None = field(
        default=None, metadata=described(Path, "Safetensors file of the dense network.", same=False)
    )
    trained: bool = field(
        default=False,
        metadata=described(
            bool, "The module is trained already, on all images as far as is known.", shown=False, same=False
        ),
    )
    target_macs: float | None = field(
        default=None, metadata=described(float, "Fraction of the dense MACs that may be left, in (0, 1).", target=True)
    )
    target_params: float | None = field(
        default=None,
        metadata=described(float, "Fraction of the dense parameters that may be left, in (0, 1).", target=True),
    )
    target_latency: float | None = field(
        default=None,
        metadata=described(
            float, "Fraction of the dense time of one image that may be left, in (0, 1); measured.", target=True
        ),
    )
    target_nonzero: float | None = field(
        default=None,
        metadata=described(
            float, "Fraction that may be other than zero, where single weights are zeroed.", target=True
        ),
    )
    max_drop: float | None = field(
        default=None,
        metadata=described(
            float, "Percentage points of validation accuracy that may be lost; instead of a size.", target=True
        ),
    )
    epochs: int | None = field(default=None, metadata=described(int, "Full passes over the training data, in all."))
    minutes: float | None = field(default=None, metadata=described(float, "Wall-clock time instead of --epochs."))
    seed: int = field(default=0, metadata=described(int, "Of weights, shuffling, augmentation and sampling."))
    same_noise: bool = field(
        default=False,
        metadata=described(
            bool, "Several processes draw the same noise in a step (default: each its own, so that it averages out)."
        ),
    )
    protect: tuple[str, ...] = field(
        default=(), metadata=described(str, "Pattern of group or module names not to cut; repeatable.", many=True)
    )
    min_channels: int = field(default=1, metadata=described(int, "Channels that each group keeps at least."))
    round_to: int | str | None = field(
        default=None,
        metadata=described(
            str, "Kept channels are multiples of this; auto: of what the device computes at no extra cost."
        ),
    )
    estimator: str | None = field(
        default=None, metadata=described(str, "weight, example, local or moments (default: the method's own).")
    )
    recipe: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=described(
            str,
            "NAME=VALUE, another value of a field of the recipe, such as cutout=0.25 or tune.lr=0.02; repeatable.",
            many=True,
        ),
    )
    from_scratch: PruningPlan | None = field(
        default=None,
        metadata=described(
            Path, "A control: train the compact architecture of this plan from fresh weights.", shown=False
        ),
    )
    bayesian_epochs: int = field(
        default=0,
        metadata=described(int, "Passes for a posterior of the compact weights, on top of --epochs.", same=False),
    )
    batch_size: int | None = field(
        default=None,
        metadata=described(int, "Images per step, of all processes together (default: 128, or less for small data)."),
    )
    image_size: int | None = field(
        default=None, metadata=described(int, "Side in pixels that images are resized to.", data=True)
    )
    valid_fraction: float | None = field(
        default=None,
        metadata=described(float, "Share of the training images set aside to choose on (default: 0.1).", data=True),
    )
    augment: str | None = field(
        default=None,
        metadata=described(str, "none, auto, or such as shift=4,flip,cutout=8,crop=0.08,colour=0.4.", data=True),
    )
    task: str | None = field(
        default=None,
        metadata=described(str, "classification, segmentation, multilabel or regression (default: by the targets)."),
    )
    stream: bool = field(
        default=False,
        metadata=described(
            bool, "Read images when they are needed (default: where they do not fit in memory).", same=False, data=True
        ),
    )
    workers: int | None = field(
        default=None, metadata=described(int, "Processes that read streamed images.", same=False, data=True)
    )
    precision: str = field(default="auto", metadata=described(str, "auto, fp32 or bf16."))
    device: str = field(default="auto", metadata=described(str, "auto, cpu, cuda or mps.", same=False))
    out: str | Path | None = field(
        default=None, metadata=described(Path, "Run directory, written as the run goes on.", same=False)
    )
    resume: bool = field(default=False, metadata=described(bool, "Go on with an interrupted run in --out.", same=False))
    progress: bool = field(default=True, metadata=described(bool, "Bars and lines on stderr.", shown=False, same=False))

    def __post_init__(self) -> None:
        self._check_kinds()
        self._settle()
        for name in (*(f"target_{cost}" for cost in BUDGETS), "target_nonzero"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"{flags([name])} is the share that may be left, between 0 and 1, got {value:g}")
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
                f"--max-drop looks for the smallest network within a drop, {flags(f'target_{cost}' for cost in self.budget)} "
                "set its size: give one or the other"
            )
        if self.epochs is not None and self.minutes is not None:
            raise ConfigError("give --epochs or --minutes, not both")
        if self.min_channels < 1:
            raise ConfigError(f"--min-channels must be at least 1, got {self.min_channels}")
        if isinstance(self.round_to, int) and self.round_to < 1:
            raise ConfigError(f"--round-to must be at least 1, got {self.round_to}")
        if self.batch_size is not None and self.batch_size < 2:
            raise ConfigError(f"--batch-size must be at least 2, got {self.batch_size}")
        if self.estimator not in (None, "weight", "example", "local", "moments"):
            raise ConfigError(f"--estimator must be weight, example, local or moments, got {self.estimator!r}")
        if self.bayesian_epochs < 0:
            raise ConfigError(f"--bayesian-epochs must be 0 or more, got {self.bayesian_epochs}")
        if self.from_scratch is not None and self.target:
            raise ConfigError(
                f"--from-scratch trains the widths of its plan, so {' and '.join(self.target)} would do nothing: leave out "
                + flags(self.target)
            )

    def _check_kinds(self) -> None:
        for option in self.options():
            value, kind = plain(getattr(self, option.name)), option.kind
            if option.many:
                ok = isinstance(value, str | Mapping) or (
                    isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
                )
            elif value is None:
                ok = option.default is None
            elif kind is Path:
                ok = option.name == "from_scratch" or isinstance(value, str | Path)
            elif kind is str:
                ok = option.default is None or isinstance(value, str)
            else:
                ok = isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (
                    kind is bool
                )
            if not ok:
                raise ConfigError(f"{option.flag} expected {_KINDS[kind]}, got {value!r}")

    def _settle(self) -> None:
        """Numbers of NumPy become Python's, which a file can hold; patterns a tuple; `NAME=VALUE` a mapping."""
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, plain(getattr(self, name)))
        object.__setattr__(self, "round_to", multiple(self.round_to))
        protect = (self.protect,) if isinstance(self.protect, str) else tuple(self.protect)
        object.__setattr__(self, "protect", protect)
        if not isinstance(self.recipe, Mapping):
            object.__setattr__(self, "recipe", dict(assignment(text) for text in self.recipe))
        if self.batch_size is not None:  # a short name for one value of the recipe
            object.__setattr__(self, "recipe", {**self.recipe, "batch_size": self.batch_size})

    @classmethod
    def options(cls) -> Iterator[Option]:
        """All options in order, each with its name, flag, type, default and help."""
        for entry in fields(cls):
            found: Option = entry.metadata["option"]
            default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
            yield Option(**{**found.__dict__, "name": entry.name, "default": default})

    @classmethod
    def make(cls, options: Mapping[str, Any]) -> CompressionConfig:
        """From keywords.

        Raises:
            ConfigError: as the class does, or an unknown name; the message has the near ones.
        """
        known = [entry.name for entry in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2)
                hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
                raise ConfigError(f"compress has no option {name!r}: {hint}")
        return cls(**options)

    @property
    def data_settings(self) -> dict[str, Any]:
        """What :func:`~pyrobnn.load_data` is told."""
        told = {option.name: (getattr(self, option.name), option.default) for option in self.options() if option.data}
        return {name: value for name, (value, default) in told.items() if value != default}

    @property
    def budget(self) -> dict[str, float]:
        """Shares that may be left, by the cost that they are of: `macs`, `params`, `latency`."""
        found = {cost: getattr(self, f"target_{cost}") for cost in BUDGETS}
        return {cost: share for cost, share in found.items() if share is not None}

    @property
    def has_budget(self) -> bool:
        """A fixed size was asked for."""
        return bool(self.budget)

    @property
    def within_drop(self) -> bool:
        """The smallest network within a drop of accuracy was asked for."""
        return self.max_drop is not None

    @property
    def target(self) -> dict[str, float]:
        """The targets given, for the report."""
        asked = {option.name: getattr(self, option.name) for option in self.options() if option.target}
        return {name: value for name, value in asked.items() if value is not None}

    def told(self) -> dict[str, Any]:
        """What decides figures and was given another value than the default, as plain data: for the report's command line.

        Method, seed and precision have entries of their own in a report.
        """
        found: dict[str, Any] = {}
        for option in self.options():
            name, value = option.name, getattr(self, option.name)
            decides = (option.same and option.shown) or name == "bayesian_epochs"
            if decides and name not in ("method", "seed", "precision") and value != option.default:
                found[name] = list(value) if isinstance(value, tuple) else value
        if self.recipe:
            found["recipe"] = {name: value for name, value in self.recipe.items() if name not in found}
        return {name: value for name, value in found.items() if value not in ({}, [])}

    def identity(self) -> dict[str, Any]:
        """What a resume must be given alike, as plain data."""
        found = {option.name: getattr(self, option.name) for option in self.options() if option.same}
        plan = found.pop("from_scratch")
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
        return {**found, "recipe": dict(self.recipe), "from_scratch": None if plan is None else plan.to_json()}


def keyword_parameters(without: tuple[str, ...] = ()) -> list[inspect.Parameter]:
    """The options as keyword parameters of a signature."""
    hints = CompressionConfig.__annotations__
    return [
        inspect.Parameter(o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=hints[o.name])
        for o in CompressionConfig.options()
        if o.name not in without
    ]
