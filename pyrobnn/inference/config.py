"""`FitConfig`: the settings of a fit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, is_dataclass
from numbers import Real
from types import NoneType
from typing import Any

import numpy as np

from pyrobnn.errors import ConfigError

_OPTIONAL = ("guide_lr", "scale_rate", "clip", "max_steps")
_NUMBERS = (
    *("epochs", "batch_size", "num_particles", "lr", "weight_decay", "momentum", "seed", "save_minutes"),
    *_OPTIONAL,
)
LARGEST_RATE = 1e4  # a slip of the pen beyond it: the first step would leave single precision


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit.

    Attributes:
        epochs: full passes over the training data, with gradients.
        batch_size: examples per step, of all processes together.
        lr: peak learning rate of the network's deterministic parameters.
        guide_lr: peak learning rate of the guide's parameters (default: `lr`).
        scale_rate: None steps the widths of a guide as its means are; a number in (0, 1] steps those of Gaussian guides
            by variational online Newton with this rate (:mod:`pyrobnn.inference.newton`); 1e-3 averages over 1,000 steps.
        optimizer: `"adam"` or `"sgd"` (Nesterov momentum), for network and guide alike, or `"muon"`: kernels take
            orthogonalised steps of `lr` times their norm, all else SGD (:class:`~pyrobnn.inference.muon.Muon`).
        momentum: of SGD and Muon, or Adam's beta1.
        weight_decay: on deterministic tensors with two or more dimensions; with Muon, on all but kernels.
        lr_schedule: factor on both rates over progress: a name, a number or a function.
        kl_schedule: KL weight over progress: a number or a function; 1 is the ELBO.
        clip: gradient norm bound, None for none.
        estimator: see :class:`~pyrobnn.inference.elbo.ELBO`.
        num_particles: draws per step.
        precision: `auto`, `fp32` or `bf16`.
        device: `auto`, `cpu`, `cuda`, `mps`.
        seed: of shuffling, augmentation and sampling.
        same_noise: several processes draw the same in a step; by default each draws its own.
        augment: use the data's augmentation; where it mirrors, each image is mirrored in every second epoch
            (Jordan 2024, "alternating flip").
        validate: measure validation accuracy (posterior means) after each epoch.
        capture: `auto` runs full batches as one CUDA graph on a CUDA device, `off` never.
        save_minutes: how often a fit that is saved is saved in the middle of an epoch, beside its end.
        max_steps: steps per epoch, to stop short of a full pass over the (shuffled) data.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    guide_lr: float | None = None
    scale_rate: float | None = None
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_schedule: Any = "cosine"
    kl_schedule: Any = 1.0
    clip: float | None = 10.0
    estimator: str = "weight"
    num_particles: int = 1
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0
    same_noise: bool = False
    augment: bool = True
    validate: bool = True
    max_steps: int | None = None
    capture: str = "auto"
    save_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real | NoneType if name in _OPTIONAL else Real):
                raise ConfigError(f"{name} must be a number, got {value!r}")
        if self.seed != int(self.seed) or abs(self.seed) >= 2**63 - 1:
            raise ConfigError(f"seed must be a whole number of 64 bits, got {self.seed}")
        for name, least in (("epochs", 0), ("batch_size", 1), ("num_particles", 1), ("max_steps", 1)):
            value = getattr(self, name)
            if value is not None and not (least <= value < math.inf and value == int(value)):
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value}")
        numbers: dict[str, Any] = {name: getattr(self, name) for name in ("lr", "guide_lr", "weight_decay", "momentum")}
        for name in ("lr_schedule", "kl_schedule"):
            value = getattr(self, name)
            numbers[name] = value if isinstance(value, int | float) else None
        for name, value in numbers.items():
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be finite and not negative, got {value}")
        for name in ("lr", "guide_lr"):
            if numbers[name] is not None and numbers[name] > LARGEST_RATE:
                raise ConfigError(
                    f"{name} must be at most {LARGEST_RATE:g}, got {numbers[name]:g}: usual rates are 1e-4 to 1"
                )
        if self.scale_rate is not None and not 0 < self.scale_rate <= 1:
            raise ConfigError(f"scale_rate is None or a rate in (0, 1], got {self.scale_rate:g}; 1e-3 is usual")
        if not self.save_minutes >= 0:
            raise ConfigError(f"save_minutes must be 0 or more, got {self.save_minutes}")
        if not self.momentum < 1:
            raise ConfigError(f"momentum must be below 1, got {self.momentum}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ConfigError(f"clip must be a positive number, or None for no bound, got {self.clip}")
        if self.capture not in ("auto", "off"):
            raise ConfigError(f"capture must be 'auto' or 'off', got {self.capture!r}")
        if self.optimizer not in ("adam", "sgd", "muon"):
            raise ConfigError(f"optimizer must be 'adam', 'sgd' or 'muon', got {self.optimizer!r}")

    def identity(self) -> dict[str, Any]:
        """What a resumed fit must have been told alike, as plain values; it may go on on another device.

        A schedule of the package is its class with its settings, another function its name alone.

        >>> FitConfig(kl_schedule=max).identity()["kl_schedule"]
        ['max']
        """
        free = ("device", "save_minutes")
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.name not in free}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, {name: _plain(setting) for name, setting in asdict(value).items()}]
    return [getattr(value, "__qualname__", type(value).__qualname__)]
