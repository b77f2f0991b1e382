"""Spike-and-slab priors: a binary gate per channel (SS-IG, SS-GL, SS-GHS) or per weight.

Jantre, Bhattacharya and Maiti (2021, 2023); formulas follow the authors' released code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.distributions.hard_concrete import OPEN, GateLogit, hard_concrete
from pyrobnn.errors import ConfigError
from pyrobnn.priors.base import ONE_EACH, NetView, Prior, Selection, kernels, selected
from pyrobnn.priors.gaussian import fan_in
from pyrobnn.priors.noise import _like, chosen_groups

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelTable

SLABS = ("ig", "gl", "ghs")
GATES = ("discrete", "hard-concrete")


def theory_inclusion(units: int, inputs: int) -> float:
    """Prior inclusion probability λ of the SS-IG theory at width `units` and fan-in `inputs`.

    λ = exp(−log k − 10⁻⁹ (fan-in + 1)³): the released code with its vanishing log terms left out. Its
    exponent grows without bound with the fan-in (98 nats at 4608 inputs); we cap it at 1 nat.

    >>> f"{theory_inclusion(800, 800):.2e} {theory_inclusion(500, 800):.2e}"   # their LeNet layers
    '7.48e-04 1.20e-03'
    """
    return math.exp(-math.log(units) - min(1e-9 * (inputs + 1) ** 3, 1.0))


def group_rows(group: Any, view: NetView) -> tuple[int, int]:
    """Weights that produce one channel of a group (bias included), and the largest fan-in among them."""
    size, inputs = 0, 1
    for member in group.members:
        if member.role == "out":
            tensor = view.tensors[member.tensor]
            size += member.index.shape[1] * (tensor.numel() // tensor.shape[member.axis])
            inputs = max(inputs, fan_in(tensor))
    return size, inputs


@dataclass
class _Gated(Prior):
    """What the two spike-and-slab priors share: which weights are random, and their slab."""

    inclusion: float | str = 1e-4
    sigma0: float = 1.0
    select: Selection | None = field(default=kernels, kw_only=True)
    relative: bool = field(default=False, kw_only=True)
    gates: str = field(default="discrete", kw_only=True)

    def __post_init__(self) -> None:
        if self.gates not in GATES:
            raise ConfigError(f"gates must be one of {', '.join(GATES)}, got {self.gates!r}")
        named = self.inclusion == "theory"
        if not named and not (isinstance(self.inclusion, int | float) and 0 < self.inclusion < 1):
            raise ConfigError(f"inclusion must be a probability in (0, 1) or 'theory', got {self.inclusion!r}")
        if not 0 < self.sigma0 < math.inf:
            raise ConfigError(f"sigma0, the slab's standard deviation, must be positive, got {self.sigma0}")
        self._units: dict[str, float] = {}
        self._chances: dict[str, float] = {}  # of the theory, by group or tensor, at the first widths
        self._shapes: dict[str, torch.Size] = {}
        self._kept = False  # a cut tensor keeps the unit it had

    def random(self, net: nn.Module) -> list[str]:
        names = [] if self.select is None else selected(net, self.select)
        if not self._kept:
            tensors = dict(net.named_parameters())
            units = {name: float(tensors[name].detach().float().square().mean().sqrt()) or 1.0 for name in names}
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            if not self.relative:
                units = dict.fromkeys(names, 1.0)
            if (self.relative and self._units not in ({}, units)) or (self._chances and self._shapes != shapes):
                raise ConfigError(ONE_EACH)
            self._units, self._shapes = units, shapes
        return names

    def shrink(self, table: ChannelTable, plan: Any) -> Prior:
        small = copy.copy(self)
        small._units, small._chances, small._kept = dict(self._units), dict(self._chances), True
        return small

    def state_dict(self) -> dict[str, Any]:
        return {"units": dict(self._units), "chances": dict(self._chances)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._units, self._chances, self._kept = dict(state["units"]), dict(state["chances"]), True

    def initial(self, view: NetView) -> dict[str, Tensor]:
        return {name: view.tensors[name].detach() for name in view.random}

    def _gate_site(self, owner: str) -> str:
        """Site of the gates of a group or tensor."""
        return f"{owner}.gate" if self.gates == "discrete" else f"{owner}.gate_logit"

    def _gate(self, owner: str, chance: Tensor, shape: Any) -> Tensor:
        """Gates of one group or tensor, in [0, 1], from the site that the chosen form samples."""
        site, dims = self._gate_site(owner), len(shape)
        if self.gates == "discrete":
            return pyro.sample(site, dist.Bernoulli(chance).expand(shape).to_event(dims))
        return hard_concrete(pyro.sample(site, GateLogit(chance).expand(shape).to_event(dims)))

    def _open(self, like: Tensor) -> Tensor:
        """Where the site of open gates starts."""
        return torch.full_like(like, 1.0 if self.gates == "discrete" else OPEN)

    def _weights(self, view: NetView) -> dict[str, Tensor]:
        values = {}
        for name in view.random:
            value = view.tensors[name]
            zero, scale = value.new_zeros(()), value.new_full((), self.sigma0 * self._units[name])
            slab = dist.Normal(zero.expand(value.shape), scale.expand(value.shape))
            values[name] = pyro.sample(name, slab.to_event(value.dim()))
        return values


@dataclass
class SpikeSlab(_Gated):
    """A gate per channel and a slab over the weights: w = z_j κ_j w̃, w̃ ~ N(0, σ₀²), z_j ~ Bernoulli(λ).

    Sites: `<group>.gate`; for the group lasso `<group>.local` and `global.<group>.rate`; for the horseshoe
    `<group>.local_a`, `<group>.local_b`, `global.<group>.a`, `global.<group>.b`; and w̃ under the name of
    each tensor. The weights are not centred: κ is a factor, not a parameter of w̃'s prior.

    Slabs:

    - `"ig"`, isotropic Gaussian: κ = 1.
    - `"gl"`, group lasso: κ_j = τ_j, τ_j² ~ Gamma((k + 1)/2, ς²/2), ς² ~ Gamma(4, 2), with k weights per
      channel; over τ² the slab is a multivariate Laplace.
    - `"ghs"`, regularised group horseshoe: κ_j² = c² g_j² / (c² + g_j²), g_j² = (A₀B₀)(A_jB_j), with
      A ~ Gamma(½, 1), B ~ InverseGamma(½, 1): √(AB) is half-Cauchy(0, 1).

    *Where z and κ act.* On the consumers' input slices, that is, on the activation of channel j. In a
    network without normalisation and with ReLUs this equals a factor on the rows and bias that produce
    the channel, where the papers place it (max(0, κa) = κ max(0, a) for κ > 0). In front of a BatchNorm a
    row factor has no effect in training, while the running statistics change with it; a factor on the
    activation has the effect that is meant, in both modes.

    *Discrete or continuous.* With `gates="discrete"` z is a Bernoulli site, exact, for
    :class:`~pyrobnn.guides.SpikeSlabGuide`. With `gates="hard-concrete"` the site is `<group>.gate_logit` on the
    real line (:class:`~pyrobnn.distributions.GateLogit`) and z its hard-concrete gate, which is 0 or 1 almost
    as often and has a slope between: AutoGuides, `MeanField` and NUTS take it.

    The posterior of w̃ behind a closed gate is its prior, which the guide's
    :class:`~pyrobnn.distributions.SwitchedNormal` expresses: the KL of w̃ is weighted by the inclusion
    probability of the channel that the weight *produces*, as published. (The weights that consume a closed
    channel are idle too; they keep their slab posterior, which is a slightly loose bound.)

    Args:
        inclusion: λ, or `"theory"` for :func:`theory_inclusion` per group.
        sigma0: σ₀.
        slab: `"ig"`, `"gl"` or `"ghs"`.
        relative: measure σ₀ in units of each tensor's root mean square at the start, so that trained
            weights are typical of their slab in every layer.
        c: bound of κ in the horseshoe.
        groups: names or patterns of gated groups; None for all.
        select: which weights are random; None keeps them all deterministic, with gates alone.
        gates: `"discrete"` or `"hard-concrete"`.

    Raises:
        ConfigError: an unknown slab, or a setting out of range.
    """

    slab: str = field(default="ig", kw_only=True)
    c: float = field(default=1.0, kw_only=True)
    groups: str | Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slab not in SLABS:
            raise ConfigError(f"slab must be one of {', '.join(SLABS)}, got {self.slab!r}")
        if not 0 < self.c < math.inf:
            raise ConfigError(f"c, the bound of the horseshoe's factor, must be positive, got {self.c}; 1 is usual")

    def prior_inclusion(self, group: Any, view: NetView) -> float:
        """λ of one group."""
        if self.inclusion != "theory":
            return float(self.inclusion)
        if group.name not in self._chances:
            self._chances[group.name] = theory_inclusion(group.channels, group_rows(group, view)[1])
        return self._chances[group.name]

    def initial(self, view: NetView) -> dict[str, Tensor]:
        """Trained weights; gates open; scales at which κ is (nearly) 1."""
        start = super().initial(view)
        like = _like(view)
        for group in chosen_groups(view, self.groups):
            one = like + torch.ones(group.channels, device=like.device)
            start[self._gate_site(group.name)] = self._open(one)
            if self.slab == "gl":
                start[f"{group.name}.local"] = one
                # The rate that fits local scales at 1: the minimum over ς² of the KLs of τ² and ς².
                half = 0.5 * (group_rows(group, view)[0] + 1)
                start[f"global.{group.name}.rate"] = like + (group.channels * half + 4) / (group.channels / 2 + 2)
            elif self.slab == "ghs":
                # κ = 1 needs g² = c² / (c² − 1); where there is none, g = 4c gives κ = 0.97 c. The
                # heavy-tailed factor B carries it.
                square = self.c**2 / (self.c**2 - 1) if self.c > 1.04 else 16 * self.c**2
                start[f"{group.name}.local_a"], start[f"{group.name}.local_b"] = one, square * one
                start[f"global.{group.name}.a"] = start[f"global.{group.name}.b"] = like + 1
        return start

    def __call__(self, view: NetView) -> dict[str, Tensor]:
        like = _like(view)
        factors = {}
        for group in chosen_groups(view, self.groups):
            gate = self._gate(group.name, like + self.prior_inclusion(group, view), [group.channels])
            factors[group.name] = gate * self._kappa(group, view, like) if self.slab != "ig" else gate
        return view.gate(factors, self._weights(view))

    def _kappa(self, group: Any, view: NetView, like: Tensor) -> Tensor:
        name, shape, one = group.name, [group.channels], like + 1
        if self.slab == "gl":
            rate = pyro.sample(f"global.{name}.rate", dist.Gamma(4 * one, 2 * one))
            half = 0.5 * (group_rows(group, view)[0] + 1)
            local = pyro.sample(f"{name}.local", dist.Gamma(half * one, 0.5 * rate).expand(shape).to_event(1))
            return local.sqrt()
        a0 = pyro.sample(f"global.{name}.a", dist.Gamma(0.5 * one, one))
        b0 = pyro.sample(f"global.{name}.b", dist.InverseGamma(0.5 * one, one))
        a = pyro.sample(f"{name}.local_a", dist.Gamma(0.5 * one, one).expand(shape).to_event(1))
        b = pyro.sample(f"{name}.local_b", dist.InverseGamma(0.5 * one, one).expand(shape).to_event(1))
        square = a0 * b0 * a * b
        # c² g² / (c² + g²), written so that a heavy-tailed g² cannot overflow.
        return (1 / square + 1 / self.c**2).rsqrt()


@dataclass
class EdgeSpikeSlab(_Gated):
    """A gate per weight: w = z w̃, z ~ Bernoulli(λ), w̃ ~ N(0, σ₀²) (the edge variant of SS-IG).

    Sites: `<tensor>.gate` and w̃ under the tensor's name, both in the tensor's shape. No channel groups are
    needed, and none are cut by it: the guide reports zeros per tensor.

    Args:
        inclusion: λ, or `"theory"` for :func:`theory_inclusion` per tensor.
        sigma0: σ₀.
        relative: measure σ₀ in units of each tensor's root mean square at the start.
        select: which weights are gated and random.
        gates: `"discrete"`, or `"hard-concrete"` with sites `gate_logit.<tensor>` (see :class:`SpikeSlab`).

    Raises:
        ConfigError: a setting out of range, or nothing selected.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select is None:
            raise ConfigError("EdgeSpikeSlab gates the selected weights and needs a selection, got None")

    def _gate_site(self, owner: str) -> str:
        # AutoGuides make a module path of a site's name: nothing can hang below the path of the tensor itself.
        return f"{owner}.gate" if self.gates == "discrete" else f"gate_logit.{owner}"

    def prior_inclusion(self, name: str, tensor: Tensor) -> float:
        """λ of one tensor's weights."""
        if self.inclusion != "theory":
            return float(self.inclusion)
        if name not in self._chances:
            self._chances[name] = theory_inclusion(tensor.shape[0], fan_in(tensor))
        return self._chances[name]

    def initial(self, view: NetView) -> dict[str, Tensor]:
        start = super().initial(view)
        return {**start, **{self._gate_site(name): self._open(value) for name, value in start.items()}}

    def __call__(self, view: NetView) -> dict[str, Tensor]:
        values = self._weights(view)
        for name, value in values.items():
            chance = value.new_full((), self.prior_inclusion(name, view.tensors[name]))
            values[name] = value * self._gate(name, chance, view.tensors[name].shape)
        return values
