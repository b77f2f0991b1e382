"""Automatic relevance determination: noise θ_c ~ N(0, γ_c) on every channel, its variance γ_c fitted with the rest.

    python examples/ard.py

At the best γ the KL of a channel is ½ log(1 + μ²/σ²): a channel that the data do not need drowns in its noise,
and goes where |μ|/σ < 1. The KL counts twenty times, to make channels dear (`poutine.scale` on both sides).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from common import WIDTHS, finish, fold, observe, run_svi, trained_net
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

PRICE = 20.0


def main() -> dict[str, float]:
    net = trained_net()

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("net", net)  # the weights are trained along, without a prior
        noise = {}
        for group, channels in WIDTHS.items():
            variance = pyro.param(f"{group}.gamma", torch.ones(channels), constraint=constraints.positive)
            with poutine.scale(scale=PRICE):
                noise[group] = pyro.sample(f"{group}.noise", dist.Normal(0.0, variance.sqrt()).to_event(1))
        observe(net(x, noise), y)

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        for group, channels in WIDTHS.items():
            loc = pyro.param(f"{group}.loc", torch.ones(channels))
            scale = pyro.param(f"{group}.scale", torch.full((channels,), 0.1), constraint=constraints.positive)
            with poutine.scale(scale=PRICE):
                pyro.sample(f"{group}.noise", dist.Normal(loc, scale).to_event(1))

    run_svi(model, guide, steps=400, lr=1e-2)
    params = {group: (pyro.param(f"{group}.loc").detach(), pyro.param(f"{group}.scale").detach()) for group in WIDTHS}
    snr = {group: loc.abs() / scale for group, (loc, scale) in params.items()}
    return finish("ard", fold(net, {group: loc for group, (loc, _) in params.items()}), snr, threshold=1.0)


if __name__ == "__main__":
    main()
