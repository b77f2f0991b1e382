"""Priors of multiplicative channel noise: one site `<group>.noise` per channel group.

The noise multiplies the consumer slices of each channel, which is noise on the activation itself;
the weights stay deterministic unless a weight prior is given along with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.distributions import ARD, LogUniform, TwoSpike
from pyrobnn.errors import ConfigError
from pyrobnn.priors.base import NetView, Prior


def chosen_groups(view: NetView, patterns: str | Sequence[str] | None) -> list[Any]:
    """The channel groups whose names match, in the table's order; all of them for None.

    Raises:
        ConfigError: there are no groups, or a pattern matches none.
    """
    if not view.groups:
        raise ConfigError(
            "this prior acts on channels and found no channel group: "
            "pass groups=pb.channel_groups(net, example) to BayesianModel"
        )
    if patterns is None:
        return list(view.groups)
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [group.name for group in view.groups]
    for pattern in wanted:
        if not any(fnmatch(name, pattern) for name in names):
            raise ConfigError(f"groups={pattern!r} matches no channel group; there are {', '.join(names)}")
    return [group for group in view.groups if any(fnmatch(group.name, pattern) for pattern in wanted)]


@dataclass
class ChannelNoise(Prior):
    """Base of the noise priors: θ_c multiplies channel c of every chosen group.

    Sites are named `<group>.noise`, have shape `[channels]` and event dimension 1; guides start at 1,
    where the network is what it was.

    Args:
        groups: names or patterns of channel groups; None for all.
        weights: a prior for the weights under the noise; None leaves them deterministic.
    """

    groups: str | Sequence[str] | None = field(default=None, kw_only=True)
    weights: Prior | None = field(default=None, kw_only=True)

    def distribution(self, like: Tensor) -> Any:
        """The prior of one channel's noise, batch shape (); `like` gives dtype and device."""
        raise TypeError(f"{type(self).__name__} must define distribution(like)")

    def random(self, net: nn.Module) -> list[str]:
        return self.weights.random(net) if self.weights is not None else []

    def initial(self, view: NetView) -> dict[str, Tensor]:
        start = self.weights.initial(view) if self.weights is not None else {}
        like = _like(view)
        for group in chosen_groups(view, self.groups):
            start[f"{group.name}.noise"] = torch.ones(group.channels, dtype=like.dtype, device=like.device)
        return start

    def shrink(self, table: Any, plan: Any) -> Prior:
        if self.weights is None:
            return self
        small = type(self)(**{**self.__dict__, "weights": self.weights.shrink(table, plan)})
        return small

    def independent(self, view: NetView) -> dict[str, Any] | None:
        weights = self.weights.independent(view) if self.weights is not None else {}
        if weights is None or type(self).__call__ is not ChannelNoise.__call__:
            return None
        one = self.distribution(_like(view))
        return {**weights, **{f"{group.name}.noise": one for group in chosen_groups(view, self.groups)}}

    def place(self, view: NetView, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        noise = {group.name: f"{group.name}.noise" for group in chosen_groups(view, self.groups)}
        inner = {name: value for name, value in values.items() if name not in set(noise.values())}
        tensors = self.weights.place(view, inner) if self.weights is not None else {}
        return view.gate({group: values[site] for group, site in noise.items()}, tensors)

    def __call__(self, view: NetView) -> dict[str, Tensor]:
        tensors = self.weights(view) if self.weights is not None else {}
        one = self.distribution(_like(view))
        factors = {
            group.name: pyro.sample(f"{group.name}.noise", one.expand([group.channels]).to_event(1))
            for group in chosen_groups(view, self.groups)
        }
        return view.gate(factors, tensors)


def _like(view: NetView) -> Tensor:
    """A scalar that says where and in which dtype channel latents live: float32 beside the weights."""
    first = next((t for t in view.tensors.values() if t.is_floating_point()), torch.zeros(()))
    dtype = first.dtype if first.dtype == torch.float64 else torch.float32
    return torch.zeros((), dtype=dtype, device=first.device)


@dataclass
class ARDNoise(ChannelNoise):
    """θ_c ~ N(0, γ_c) with γ_c fitted: KL ½ log(1 + μ²/σ²) per channel (see :class:`ARD`).

    Per-channel prices (MACs, say) are weights of these sites in the objective, not part of the prior.
    """

    def distribution(self, like: Tensor) -> Any:
        return ARD(like=like)


@dataclass
class LogUniformNoise(ChannelNoise):
    """log θ_c ~ Uniform[a, b]: the prior of Structured Bayesian Pruning (Neklyudov et al. 2017).

    Its guide is :class:`~pyrobnn.guides.noise.TruncatedLogNormalNoise`.

    Args:
        a: lower end of log θ.
        b: upper end of log θ; 0 means that noise never amplifies a channel.

    Raises:
        ConfigError: a ≥ b, or b < 0 (the guide's start θ = 1 would be outside).
    """

    a: float = -20.0
    b: float = 0.0

    def __post_init__(self) -> None:
        if not self.a < self.b or self.b < 0:
            raise ConfigError(f"log-uniform noise needs a < b and b ≥ 0, got {self.a} and {self.b}; usual: -20, 0")

    def distribution(self, like: Tensor) -> Any:
        return LogUniform(self.a, self.b, like=like)


@dataclass
class TwoSpikeNoise(ChannelNoise):
    """θ_c ~ (1 − π) N(0, τ²) + π N(1, τ²): off, or kept at 1 (see :class:`TwoSpike`).

    The spikes are 1/(2τ²) nats apart, 50 at τ = 0.1: noise that starts at 1 never crosses that gap, useful
    or not. Start wide and narrow the spikes while fitting; `tau` is read anew at every step, so
    `prior.tau = ...` (from 1 down to 0.1, say) does it. Guides report inclusion at the τ of the moment.

    Args:
        pi: prior probability that a channel is kept.
        tau: width of both spikes.

    Raises:
        ConfigError: π outside (0, 1) or τ ≤ 0.
    """

    pi: float = 0.5
    tau: float = 0.1

    def __post_init__(self) -> None:
        TwoSpike(self.pi, self.tau)  # its checks are ours

    def distribution(self, like: Tensor) -> Any:
        return TwoSpike(like + self.pi, like + self.tau)


@dataclass
class SpikeNoise(ChannelNoise):
    """θ_c ~ N(0, τ²) with small τ: the plain Dirac-like prior (reading R1 for RBP, reconstructed).

    1/τ² is large, so anneal the KL weight.

    Args:
        tau: width of the spike.

    Raises:
        ConfigError: τ ≤ 0.
    """

    tau: float = 0.1

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ConfigError(f"tau, the width of the spike, must be positive, got {self.tau}; 0.05 to 0.1 is usual")

    def distribution(self, like: Tensor) -> Any:
        return dist.Normal(like, like + self.tau)
