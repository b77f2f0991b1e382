"""Spike and slab: a gate per channel and Gaussian slabs on the weights, with gates that AutoGuides can take.

    python examples/spike_slab.py

A Bernoulli gate is discrete and no AutoGuide takes it. The hard-concrete gate (Louizos et al. 2018) is a function of a
logit u ~ Logistic(logit λ, 1) on the real line: 0 for u < −1.6, 1 for u > 1.6, a slope between, ½ at u = 0.
P(u > 0) is λ under the prior and the inclusion probability under the posterior.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from common import WIDTHS, finish, fold, observe, run_svi, trained_net
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.func import functional_call

LAMBDA, PRICE = 0.01, 2.0


def hard_concrete(u: Tensor) -> Tensor:
    return (1.2 * torch.sigmoid(1.5 * u) - 0.1).clamp(0.0, 1.0)


def main() -> dict[str, float]:
    net = trained_net()
    weights = {name: value.detach().clone() for name, value in net.named_parameters()}
    start = {**weights, **{f"{group}.gate_logit": torch.full((n,), 2.0) for group, n in WIDTHS.items()}}

    def model(x: Tensor, y: Tensor | None = None) -> None:
        logit = torch.tensor(LAMBDA).logit()
        gates = {}
        for group, channels in WIDTHS.items():
            with poutine.scale(scale=PRICE):
                u = pyro.sample(f"{group}.gate_logit", dist.Logistic(logit, 1.0).expand([channels]).to_event(1))
            gates[group] = hard_concrete(u)
        slabs = {
            name: pyro.sample(name, dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim()))
            for name, value in weights.items()
        }
        observe(functional_call(net, slabs, (x, gates)), y)

    guide = AutoNormal(model, init_loc_fn=init_to_value(values=start), init_scale=0.02)
    run_svi(model, guide, steps=400, lr=1e-2)

    inclusion, gates = {}, {}
    for group in WIDTHS:
        loc, scale = (part.detach() for part in guide._get_loc_and_scale(f"{group}.gate_logit"))
        inclusion[group], gates[group] = torch.special.ndtr(loc / scale), hard_concrete(loc)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(guide.median()[name])
    return finish("spike and slab", fold(net, gates), inclusion, threshold=0.5)


if __name__ == "__main__":
    main()
