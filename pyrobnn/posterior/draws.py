"""Posterior draws of the tensors that a network is called with, wherever the latents are placed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrobnn.errors import ConfigError
from pyrobnn.model import BayesianModel
from pyrobnn.summary.reading import guide_runs


def draw_tensors(model: BayesianModel, guide: Any, draws: int, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """One posterior draw after another as tensors for `torch.func.functional_call`; none is kept.

    Args:
        model, guide: a fitted pair (the guide may be a function that `fit` has trained).
        draws: how many.
        seed: of the draws; the global RNG state is kept.

    Yields:
        `{tensor name: value}` of the tensors that the posterior changes: weights, gates multiplied in.

    Raises:
        ConfigError: fewer than 1 draw.
    """
    if draws < 1:
        raise ConfigError(f"expected at least 1 posterior draw, got {draws}")
    for trace in guide_runs(model, guide, draws, seed):
        with torch.no_grad(), poutine.block():
            tensors = poutine.replay(model.values, trace=trace)()
        yield tensors


def remaining_scales(model: BayesianModel, guide: Any, *, draws: int = 256, seed: int = 0) -> dict[str, Tensor]:
    """Posterior standard deviation of every tensor that the network is called with, `{tensor: like it}`.

    By draws (Welford's recursion), so that it holds for any prior: a weight's own posterior, the noise of
    its channel, a gate, or all of them. Tensors that the posterior leaves alone are missing, weights that
    it leaves alone have 0.
    """
    mean: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    for count, tensors in enumerate(draw_tensors(model, guide, draws, seed), start=1):
        for name, value in tensors.items():
            value = value.detach().float()
            if name not in mean:
                mean[name], squares[name] = torch.zeros_like(value), torch.zeros_like(value)
            delta = value - mean[name]
            mean[name] += delta / count
            squares[name] += delta * (value - mean[name])
    found = {name: (total / max(draws - 1, 1)).sqrt() for name, total in squares.items()}
    # Rounding in the running mean of a constant is no uncertainty.
    return {name: torch.where(sd > 1e-6 * mean[name].abs(), sd, 0.0) for name, sd in found.items()}
