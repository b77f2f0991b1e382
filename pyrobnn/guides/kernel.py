"""Mean field with one variance per kernel: the tensor-normal guide of extended VI, as reduced in its code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyrobnn.guides.base import PerKernel, site_key
from pyrobnn.guides.mean_field import MeanField

if TYPE_CHECKING:
    from pyrobnn.model import BayesianModel


class KernelMeanField(MeanField):
    """q(W_k) = N(M_k, σ_k² I): a free mean per tap, one variance per kernel (row of axis 0).

    As in the code of extended variational inference (Dera et al.), where the covariances of the
    tensor-normal are reduced to σ_k² I. Sites that are no network tensors with two or more
    dimensions keep a variance per coordinate, as in :class:`MeanField`.

    Args: as :class:`MeanField`.
    """

    def __init__(self, model: BayesianModel, *, init_scale: float = 0.1, scale_lr: float = 1.0) -> None:
        super().__init__(model, init_scale=init_scale, scale_lr=scale_lr)
        for name in self._sites:
            key = site_key(name)
            value = self.loc[key].detach()
            if name not in model.tensor_names or value.dim() < 2:
                continue
            start = self.log_scale[key].detach()  # the same for all: init_scale times the tensor's own size
            self.log_scale[key] = nn.Parameter(start[(slice(None), *[slice(0, 1)] * (value.dim() - 1))].clone())
            self.layout[f"log_scale.{key}"] = PerKernel(name)

    @torch.no_grad()
    def set_scale(self, site: str, mean: Tensor, sd: Tensor) -> None:
        """Match the mean, and the root mean square of the standard deviations of each kernel."""
        if self.log_scale[site_key(site)].shape != self.loc[site_key(site)].shape:
            sd = _rms(sd)
        super().set_scale(site, mean, sd)

    @torch.no_grad()
    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (loc, scale.expand(loc.shape)) for name, (loc, scale) in super().moments().items()}


def _rms(value: Tensor) -> Tensor:
    """Root mean square of each row, shape `[rows, 1, …]`."""
    return value.square().mean(tuple(range(1, value.dim())), keepdim=True).sqrt()
