"""Dirac-like dropout noise: θ_c ~ (1 − π) N(0, τ²) + π N(1, τ²), a channel is off or kept at 1.

    python examples/dropout_noise.py

Between narrow spikes noise never crosses from 1 to 0, needed or not, so τ starts at 1 and falls to 0.1 on the way.
The inclusion of a channel is the responsibility that the spike at 1 has for its posterior.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from common import WIDTHS, finish, fold, observe, run_svi, trained_net
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints, kl_divergence

KEEP, PRICE, STEPS = 0.1, 10.0, 400


def main() -> dict[str, float]:
    net = trained_net()
    step = [0]

    def tau() -> float:
        return max(0.1, 0.1 ** (step[0] / STEPS))

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("net", net)
        step[0] += 1
        noise = {}
        for group, channels in WIDTHS.items():
            spikes = dist.Normal(torch.tensor([0.0, 1.0]), tau())
            prior = dist.MixtureSameFamily(dist.Categorical(torch.tensor([1 - KEEP, KEEP])), spikes)
            with poutine.scale(scale=PRICE):
                noise[group] = pyro.sample(f"{group}.noise", prior.expand([channels]).to_event(1))
        observe(net(x, noise), y)

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        for group, channels in WIDTHS.items():
            loc = pyro.param(f"{group}.loc", torch.ones(channels))
            scale = pyro.param(f"{group}.scale", torch.full((channels,), 0.1), constraint=constraints.positive)
            with poutine.scale(scale=PRICE):
                pyro.sample(f"{group}.noise", dist.Normal(loc, scale).to_event(1))

    run_svi(model, guide, steps=STEPS, lr=1e-2)
    inclusion, mean = {}, {}
    for group in WIDTHS:
        mean[group] = pyro.param(f"{group}.loc").detach()
        q = dist.Normal(mean[group], pyro.param(f"{group}.scale").detach())
        off, on = (kl_divergence(q, dist.Normal(at, tau())) for at in (0.0, 1.0))
        inclusion[group] = torch.sigmoid(torch.tensor(KEEP / (1 - KEEP)).log() + off - on)
    return finish("dropout noise", fold(net, mean), inclusion, threshold=0.5)


if __name__ == "__main__":
    main()
