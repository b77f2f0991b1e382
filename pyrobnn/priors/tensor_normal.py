"""The prior of extended variational inference on kernels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.distributions import Distribution

from pyrobnn.distributions.l1_normal import L1Normal
from pyrobnn.errors import ConfigError
from pyrobnn.priors.gaussian import Gaussian, _expanded, resolve_scale

NORMS = ("frobenius", "l1")


@dataclass
class TensorNormal(Gaussian):
    """W_k ~ N(0, s² I) for every kernel: the tensor-normal prior as the authors' code reduces it.

    The KL to a guide with one variance per kernel is ½ Σ_k [ ‖M_k‖²/s² + Kσ_k²/s² − K − K log(σ_k²/s²) ].

    Args:
        scale: as in :class:`~pyrobnn.priors.Gaussian`; the authors' code has 1.
        norm: `"frobenius"` for that KL, `"l1"` for the variant of the authors' MNIST code with Σ|M_k|/s in
            place of ‖M_k‖²/s² (see :class:`~pyrobnn.distributions.l1_normal.L1Normal`).

    Raises:
        ConfigError: a scale that is not positive and finite, or an unknown norm.
    """

    norm: str = "frobenius"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in NORMS:
            raise ConfigError(f"norm must be 'frobenius' or 'l1', got {self.norm!r}")

    def distribution(self, name: str, value: Tensor) -> Distribution:
        if self.norm == "frobenius":
            return super().distribution(name, value)
        return L1Normal(_expanded(0.0, value), _expanded(resolve_scale(self.scale, name, value), value))
