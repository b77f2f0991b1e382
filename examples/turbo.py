"""The three-layer prior of Turbo-VBI: support -> precision -> weight, with a Markov chain in the support.

    python examples/turbo.py

Along the weights of a filter runs a binary chain s. Given s_n the precision is ρ_n ~ Γ(a, b) or Γ(ā, b̄), and
w_n ~ N(0, 1/ρ_n). With ρ summed out a weight is a Student t in either state, and a chain of two states over
Student t's is a hidden Markov model, which Pyro has: `dist.DiscreteHMM` sums the support out exactly.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from common import finish, observe, run_svi, trained_net
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.func import functional_call

from pyrobnn.distributions.markov import BinaryMarkovChain

P01, P10 = 0.03, 0.2  # off -> on and on -> off along a filter
SHAPE, RATE_ON, RATE_OFF = 1.0, 1.0, 1e-4  # a = ā, and b, b̄ in units of each layer's mean square weight


def emissions(unit: float) -> dist.StudentT:
    """t_off and t_on of one weight: 2a degrees of freedom, scale √(b/a)."""
    rates = torch.tensor([RATE_OFF, RATE_ON]) * unit
    return dist.StudentT(2 * SHAPE, 0.0, (rates / SHAPE).sqrt())


def main() -> dict[str, float]:
    net = trained_net()
    weights = {name: value.detach().clone() for name, value in net.named_parameters()}
    units = {name: float(value.square().mean()) for name, value in weights.items()}
    chains = ("conv1.weight", "conv2.weight")
    share = P01 / (P01 + P10)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        values = {}
        for name, value in weights.items():
            if name in chains:
                initial = torch.tensor([1 - share, share]).log()
                moves = torch.tensor([[1 - P01, P01], [P10, 1 - P10]]).log()
                law = dist.DiscreteHMM(initial, moves, emissions(units[name]).expand([value[0].numel(), 2]))
                rows = pyro.sample(name, law.expand([len(value)]).to_event(1))  # a chain for each filter
                values[name] = rows.reshape(value.shape)
            else:
                values[name] = pyro.sample(name, dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim()))
        observe(functional_call(net, values, (x,)), y)

    start = {name: value.flatten(1) if name in chains else value for name, value in weights.items()}
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=start), init_scale=0.005)
    run_svi(model, guide, steps=200, lr=3e-3)

    median, support = guide.median(), {}
    for name in chains:  # where the chain says that weights are in use
        laws = emissions(units[name])
        evidence = laws.log_prob(median[name][..., None])
        chain = BinaryMarkovChain(P01, P10, median[name].shape[1])
        on = chain.messages(evidence[..., 1] - evidence[..., 0]).posterior.sigmoid().detach()
        support[name.removesuffix(".weight")] = on.mean(1)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(median[name].view_as(value))
    return finish("turbo", net, support, threshold=float(torch.cat(list(support.values())).median()))


if __name__ == "__main__":
    main()
