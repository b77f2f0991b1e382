"""Variational online Newton steps for the widths of Gaussian posteriors.

For q = N(m, 1/P) and the loss L = E_q[ℓ] + w KL / N per example, the natural-gradient step on the precision is

    P ← P + 2ρ ∂L/∂σ² / τ = P (1 + ρ r),   r = (∂L/∂log σ) / τ,   τ = w / N

(Khan et al. 2018): with one draw, ∂L/∂log σ holds g ε σ, so that P follows a running average of the Hessian estimates
h = g ε / σ of the reparameterisation gradient, in units of τ, plus that of the prior, and rests where P = (h + τ/s²) / τ. Steps
are as long as the posterior is wide, whatever the units of a weight, where Adam moves all log σ alike. The square term of

    P ← P (1 + ρ r + ½ ρ² r²)

keeps P positive (Lin, Schmidt and Khan 2020); that is the update of the Hessian in IVON (Shen et al. 2024). P is its own
running average: there is no state to keep. Means go on with the optimiser of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.errors import ConfigError


@dataclass(frozen=True)
class Scale:
    """A parameter log σ.

    Attributes:
        parameter: log σ.
        site: whose widths these are.
        shared: entries of the site for each entry of the parameter.
    """

    parameter: nn.Parameter
    site: str
    shared: float


class NewtonScales:
    """Steps of a guide's log σ; called after the backward pass.

    Args:
        scales: the parameters.
        rate: ρ, the share of a step's estimate in the running average, in (0, 1].
        data_size: N.

    Attributes:
        kl_weight: w of the step; a number or a tensor.
        site_weights: `{site: factor on its KL}`, read at every step.
    """

    def __init__(
        self, scales: list[Scale], rate: float, data_size: int, site_weights: Mapping[str, float | Tensor] | None = None
    ) -> None:
        self.scales, self.rate, self.data_size = scales, rate, data_size
        self.site_weights = {} if site_weights is None else site_weights

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them."""
        return [scale.parameter for scale in self.scales]

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for scale in self.scales:
            scale.parameter.grad = None

    @torch.no_grad()
    def step(self, kl_weight: float | Tensor, failed: Tensor | None = None) -> None:
        """Move every log σ by −½ log(1 + ρ r + ½ ρ² r²); where the KL has no weight yet, or the step `failed`, they rest."""
        for scale in self.scales:
            parameter = scale.parameter
            if parameter.grad is None:
                continue
            weight = torch.as_tensor(kl_weight, dtype=parameter.dtype, device=parameter.device)
            temperature = weight * self.site_weights.get(scale.site, 1.0) * scale.shared / self.data_size
            moves = temperature > 0
            if failed is not None:
                moves = moves & (failed == 0)
            change = self.rate * parameter.grad / torch.where(temperature > 0, temperature, 1.0)
            step = -0.5 * torch.log1p(change * (1 + 0.5 * change))
            parameter.add_(torch.where(moves, step, 0.0))


def newton_scales(
    guide: Any, rate: float, data_size: int, site_weights: Mapping[str, float | Tensor] | None = None
) -> NewtonScales:
    """The steps of a guide that says which parameters are widths (`scale_parameters()`, as `MeanField` does).

    Raises:
        ConfigError: a guide that has none.
    """
    names = guide.scale_parameters() if hasattr(guide, "scale_parameters") else {}
    if not names:
        raise ConfigError(
            f"scale_rate steps the widths of a Gaussian guide, and {type(guide).__name__} has none that it can name: "
            "use MeanField, or leave scale_rate at None"
        )
    parameters = dict(guide.named_parameters())
    scales = [Scale(parameters[name], site, shared) for name, (site, shared) in names.items()]
    return NewtonScales(scales, rate, data_size, site_weights)
