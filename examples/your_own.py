"""A prior of your own as a function of `pyro.sample` statements, a stock AutoGuide, and the package's road from there.

    python examples/your_own.py

A horseshoe on channels: θ_c = τ λ_c with λ_c ~ HalfCauchy(1) and a global τ ~ HalfCauchy(0.1) per layer. What the
function returns are tensors for the network; `view.gate` multiplies a channel's factor into the weights that
read it. Everything else (guide, SVI, Predictive) is Pyro's; summary, plan and surgery are pyrobnn's.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from common import N, X, Y, accuracy, run_svi, trained_net, tuned
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import pyrobnn as pb


def horseshoe(view: pb.priors.NetView) -> dict[str, Tensor]:
    factors = {}
    for group in view.groups:
        tau = pyro.sample(f"global.{group.name}.tau", dist.HalfCauchy(0.1))
        local = pyro.sample(f"{group.name}.noise", dist.HalfCauchy(1.0).expand([group.channels]).to_event(1))
        factors[group.name] = tau * local
    return view.gate(factors)


def main() -> dict[str, float]:
    net = trained_net()
    table = pb.channel_groups(net, X[:2])
    model = pb.BayesianModel(net, horseshoe, data_size=N, groups=table)
    guide = pb.guides.auto(model, AutoNormal)
    run_svi(model, guide, steps=300, lr=5e-3)
    draws = Predictive(model, guide=guide, num_samples=10)(X[:200])["obs"]
    print(f"ten draws agree with the labels on {(draws == Y[:200]).float().mean():.0%} of 200 training images")

    posterior = pb.summarize(model, guide)
    print(posterior)
    plan = pb.plan(posterior, threshold=float(torch.cat([c.snr for c in posterior.channels.values()]).median()))
    small = tuned(pb.compact(pb.deterministic_net(model, guide), plan, X[:2]), 3, 2e-3)
    found = {
        "dense": accuracy(net),
        "compact": accuracy(small),
        "left": sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters()),
    }
    print(f"your own: {found['left']:.0%} of the parameters; accuracy {found['dense']:.3f} -> {found['compact']:.3f}")
    return found


if __name__ == "__main__":
    main()
