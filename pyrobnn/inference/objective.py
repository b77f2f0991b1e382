"""The training loss as one `nn.Module` (so that it can be compiled, moved or wrapped by DDP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.flat import FlatELBO, flat_elbo
from pyrobnn.inference.terms import Step, Term
from pyrobnn.model import BayesianModel


@dataclass
class Loss:
    """One step's loss and its pieces, all per training example and in nats."""

    loss: Tensor
    nll: Tensor
    kl: Tensor
    output: Any


class Objective(nn.Module):
    """nll_weight * NLL/N + kl_weight * KL/N + terms, per example.

    Attributes:
        kl_weight: current factor on the KL; a tensor where the step is captured.
        site_weights: `{site: factor or tensor per coordinate}`, see :class:`~pyrobnn.inference.elbo.ELBO`.
    """

    def __init__(self, model: BayesianModel, guide: nn.Module, elbo: ELBO, terms: Sequence[Term] = ()) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.elbo = elbo
        self.terms = tuple(terms)
        self.fast: FlatELBO | None = None

    def rebuild(self) -> None:
        """Look again for a fast evaluation: after a cut, or a change of the prior's settings."""
        self.fast = flat_elbo(self.elbo, self.model, self.guide)

    @property
    def kl_weight(self) -> float | Tensor:
        return self.elbo.kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float | Tensor) -> None:
        self.elbo.kl_weight = value

    @property
    def site_weights(self) -> dict[str, float | Tensor]:
        return self.elbo.site_weights

    def forward(self, x: Tensor, y: Tensor, view: Tensor | None = None) -> Loss:
        fast = self.fast if self.fast is not None and self.fast.usable else None
        parts = self.elbo.parts(self.model, self.guide, x, y) if fast is None else fast.parts(x, y)
        n = self.model.data_size
        nll, kl = parts.nll / n, parts.total_kl(parts.nll) / n
        nll_weight = 1.0
        extra = torch.zeros((), device=nll.device)
        step = Step(x, y, parts.output, self.model, self.guide, view)
        for term in self.terms:
            nll_weight *= term.nll_weight
            extra = extra + term(step)
        loss = nll_weight * nll + self.kl_weight * kl + extra
        return Loss(loss, nll.detach(), kl.detach(), parts.output)
