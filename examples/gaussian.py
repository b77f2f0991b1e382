"""Mean-field Gaussian weights: every weight w ~ N(0, 1), filters kept by their signal-to-noise ratio.

    python examples/gaussian.py

The model is written out in `pyro.sample` statements and trained by stock Pyro; only the surgery at the end is pyrobnn's.
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


def main() -> dict[str, float]:
    net = trained_net()
    start = {name: value.detach().clone() for name, value in net.named_parameters()}

    def model(x: Tensor, y: Tensor | None = None) -> None:
        weights = {
            name: pyro.sample(name, dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim()))
            for name, value in start.items()
        }
        observe(functional_call(net, weights, (x,)), y)

    # At the trained weights, and narrow: AutoNormal alone starts at 0, the prior's median.
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=start), init_scale=0.01)
    run_svi(model, guide, steps=300, lr=3e-3)

    def snr(name: str) -> Tensor:
        """Root mean square of μ/σ over the weights of each filter."""
        loc, scale = guide._get_loc_and_scale(name)
        return (loc / scale).detach().flatten(1).square().mean(1).sqrt()

    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(guide.median()[name])
    scores = {layer: snr(f"{layer}.weight") for layer in ("conv1", "conv2")}
    return finish("gaussian", net, scores, threshold=float(torch.cat(list(scores.values())).median()))


if __name__ == "__main__":
    main()
