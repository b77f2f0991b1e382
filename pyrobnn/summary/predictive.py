"""Pointwise log-likelihoods of posterior draws, for leave-one-out cross-validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrobnn.errors import ConfigError
from pyrobnn.likelihoods import as_observed
from pyrobnn.model import BayesianModel
from pyrobnn.nets.calling import eval_mode
from pyrobnn.summary.reading import guide_runs

BATCH = 500


@torch.no_grad()
def predictive_draws(model: BayesianModel, guide: Any, data: Any, draws: int, seed: int = 0) -> dict[str, Tensor]:
    """log p(y_n | x_n, θ_s) of every example under every draw, network in evaluation mode.

    Args:
        model, guide: a fitted pair.
        data: `(x, y)` tensors, or a split of a data set.
        draws: how many; the same draws as :func:`~pyrobnn.summarize` keeps for this seed.
        seed: of the draws.

    Returns:
        `{"log_likelihood": [S, N], "observed": [N, ...]}`, on the CPU.

    Raises:
        ConfigError: no draws, or data of another kind.
        DataError: targets of another shape than the likelihood's.
    """
    if draws < 1:
        raise ConfigError(f"the log-likelihood needs posterior draws, got draws={draws}: 100 is usual")
    rows, observed = [], []
    reference = next(iter([*model.net.parameters(), *model.net.buffers()]), torch.zeros(()))
    with eval_mode(model.net):
        for number, trace in enumerate(guide_runs(model, guide, draws, seed)):
            with poutine.block():
                tensors = poutine.replay(model.values, trace=trace)()
            row = []
            for x, y in _batches(data, reference.device):
                targets = model.density(model.call_net(model.net, tensors, x, whole=True))
                density = targets.log_prob(as_observed(targets, y))
                row.append(density.float().cpu().flatten(1).sum(1) if density.dim() > 1 else density.float().cpu())
                if number == 0:
                    observed.append(y.cpu())
            rows.append(torch.cat(row))
    return {"log_likelihood": torch.stack(rows), "observed": torch.cat(observed)}


def _batches(data: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    if hasattr(data, "batches"):
        yield from data.batches(BATCH, device=device)
    elif isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        for x, y in zip(*(part.split(BATCH) for part in data), strict=True):
            yield x.to(device), y.to(device)
    else:
        raise ConfigError(f"data must be (x, y) tensors or a split of a data set, got {type(data).__name__}")
