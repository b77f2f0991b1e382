"""The spike-and-slab guide: straight-through gates, Gaussian slabs, log-normal scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrobnn.channels.parts import per_unit
from pyrobnn.distributions import StraightThroughBernoulli, SwitchedNormal
from pyrobnn.distributions.binary import GRADIENTS
from pyrobnn.errors import ConfigError
from pyrobnn.guides.base import Guide, site_key, site_layout
from pyrobnn.guides.noise import bare

if TYPE_CHECKING:
    from pyrobnn.channels import ChannelTable
    from pyrobnn.model import BayesianModel

GATE = ".gate"
SUREST = 15.0  # log-odds that a start gives a gate at the most: further out it has no gradient to close by
IDLE = 1e-3  # nats: a channel that loses less is held by no data


class SpikeSlabGuide(Guide):
    """Posterior for :class:`~pyrobnn.priors.spike_slab.SpikeSlab` and its edge variant.

    - Gates: :class:`~pyrobnn.distributions.StraightThroughBernoulli` with γ = sigmoid(θ).
    - Weights: :class:`~pyrobnn.distributions.SwitchedNormal`, N(μ, softplus(ρ)²) where the gate of the
      channel that the weight produces (in the edge variant its own gate) is on, else the prior. Its KL is
      the slab KL times γ. Weights without a gate (the output layer) are plain Normals.
    - Positive scales: log-normal.

    Gates are sampled first; everything else may depend on them.

    Args:
        model: a :class:`~pyrobnn.BayesianModel` with a spike-and-slab prior.
        init_inclusion: initial γ of every gate.
        init_rho: initial ρ; −6 gives σ = 0.0025. None starts at a tenth of each tensor's root mean square.
        init_scale: initial log-scale standard deviation of the positive sites.
        gradient: of the gates: `"trapezoid"`, unbiased for losses that are quadratic in a gate, or the
            published `"straight-through"`, which on a small network with known optimum puts single
            inclusions off by 0.1; see :class:`StraightThroughBernoulli`.
        temperature: of `"straight-through"`; the other estimator has none.
        gate_lr: factor on the guide's learning rate for the gates' logits, which have units to go where
            the means of trained weights have hundredths.
        scale_lr: the same for ρ and the positive sites.

    Attributes:
        temperature: read at every draw, so a schedule may set it.

    Raises:
        ConfigError: a setting out of range, no gate, or a site that the family does not cover.
    """

    def __init__(
        self,
        model: BayesianModel,
        *,
        init_inclusion: float = 0.99,
        init_rho: float | None = -6.0,
        init_scale: float = 0.1,
        temperature: float = 0.5,
        gradient: str = "trapezoid",
        gate_lr: float = 1.0,
        scale_lr: float = 1.0,
    ) -> None:
        super().__init__()
        if min(gate_lr, scale_lr) <= 0:
            raise ConfigError(f"gate_lr and scale_lr are factors above 0, got {gate_lr} and {scale_lr}")
        self.gate_lr, self.scale_lr = gate_lr, scale_lr
        if not 0 < init_inclusion < 1:
            raise ConfigError(f"init_inclusion must lie in (0, 1), got {init_inclusion}; 0.99 is published")
        if not init_scale > 0:
            raise ConfigError(f"init_scale must be positive, got {init_scale}; 0.1 is usual")
        if gradient not in GRADIENTS:
            raise ConfigError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
        if not temperature > 0:
            raise ConfigError(f"temperature must be positive, got {temperature}; 0.5 is published")
        self.temperature, self.gradient = temperature, gradient
        self.theta, self.mu, self.rho = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self.log_loc, self.log_scale = nn.ParameterDict(), nn.ParameterDict()
        self._table = (model.groups,)
        self._gates: dict[str, tuple[str | None, int]] = {}  # site -> (group or None, event dims)
        self._prior_odds: dict[str, float] = {}  # site -> logit λ
        self._slabs: dict[str, tuple[float, float, int]] = {}  # site -> (prior loc, prior scale, event dims)
        self._scales: dict[str, int] = {}
        start = model.initial_values()
        for name, site in model.sites().items():
            p, key, dims = bare(site["fn"]), site_key(name), site["fn"].event_dim
            value = start.get(name, site["value"]).detach().float().clone()
            group = model.group_of_site(name)
            layout = site_layout(model, name)
            if isinstance(p, torch.distributions.Bernoulli):
                self._gates[name] = (group, dims)
                self._prior_odds[name] = float(p.logits.flatten()[0])
                self.theta[key] = nn.Parameter(torch.full_like(value, math.log(init_inclusion / (1 - init_inclusion))))
                parts = ["theta"]
            elif isinstance(p, torch.distributions.Normal):
                self._slabs[name] = (float(p.loc.flatten()[0]), float(p.scale.flatten()[0]), dims)
                self.mu[key] = nn.Parameter(value)
                self.rho[key] = nn.Parameter(
                    torch.full_like(value, _start_rho(value) if init_rho is None else init_rho)
                )
                parts = ["mu", "rho"]
            elif isinstance(p, torch.distributions.Gamma | torch.distributions.InverseGamma):
                self._scales[name] = dims
                self.log_loc[key] = nn.Parameter(value.log())
                self.log_scale[key] = nn.Parameter(torch.full_like(value, math.log(init_scale)))
                parts = ["log_loc", "log_scale"]
            else:
                raise ConfigError(
                    f"SpikeSlabGuide covers Bernoulli, Normal, Gamma and InverseGamma sites; site {name!r} has "
                    f"prior {type(p).__name__}: use the guide that belongs to that prior (for gates='hard-concrete': "
                    "MeanField or pb.guides.auto)"
                )
            if layout is not None:
                self.layout.update({f"{part}.{key}": layout for part in parts})
        if not self._gates:
            raise ConfigError("SpikeSlabGuide found no gate: use priors.SpikeSlab or EdgeSpikeSlab, or MeanField")

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; arguments (the batch) are ignored."""
        draws = {}
        for name, (_, dims) in self._gates.items():
            q = StraightThroughBernoulli(self.theta[site_key(name)], self.temperature, self.gradient)
            draws[name] = pyro.sample(name, q.to_event(dims))
        for name, dims in self._scales.items():
            key = site_key(name)
            q = dist.LogNormal(self.log_loc[key], self.log_scale[key].exp())
            draws[name] = pyro.sample(name, q.to_event(dims))
        gates = {name: draws[name] for name in self._gates}
        chances = {name: self.theta[site_key(name)].sigmoid() for name in self._gates}
        for name, (off_loc, off_scale, dims) in self._slabs.items():
            mu, scale = self.mu[site_key(name)], softplus(self.rho[site_key(name)])
            on, inclusion = self._switch(name, mu, gates), self._switch(name, mu, chances)
            if on is None or inclusion is None:
                q = dist.Normal(mu, scale)
            else:
                q = SwitchedNormal(mu, scale, off_loc, off_scale, on, inclusion, validate_args=False)
            draws[name] = pyro.sample(name, q.to_event(dims))
        return draws

    def _switch(self, name: str, value: Tensor, per_gate: dict[str, Tensor]) -> Tensor | None:
        """Values per gate, laid out to broadcast against the tensor `name`; None if no gate rules it."""
        if f"{name}{GATE}" in per_gate:
            return per_gate[f"{name}{GATE}"]
        table = self._table[0]
        units = table.cut_axes.get(name, {}).get(0) if table is not None else None
        if table is None or units is None:
            return None
        groups = {group: per_gate[site] for site, (group, _) in self._gates.items() if group is not None}
        if not groups:
            return None
        # Position 0 of the flat vector stands for rows that no group owns: always on, as ungated groups.
        rows = table.flat(groups)[units.to(value.device)]
        return rows.view(-1, *[1] * (value.dim() - 1))

    @torch.no_grad()
    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and sd: γ and √(γ(1 − γ)) of a gate, the slab's of a weight, the log-normal's of a scale."""
        found = {}
        for name in self._gates:
            gamma = self.theta[site_key(name)].sigmoid()
            found[name] = (gamma, (gamma * (1 - gamma)).sqrt())
        for name in self._scales:
            q = dist.LogNormal(self.log_loc[site_key(name)], self.log_scale[site_key(name)].exp())
            found[name] = (q.mean, q.variance.sqrt())
        for name in self._slabs:
            found[name] = (self.mu[site_key(name)].detach(), softplus(self.rho[site_key(name)]))
        return found

    def lr_factor(self, parameter: str) -> float:
        kind = parameter.partition(".")[0]
        return {"mu": 1.0, "theta": self.gate_lr}.get(kind, self.scale_lr)

    @torch.no_grad()
    def inclusion(self) -> dict[str, Tensor]:
        """P(a channel is in use), `{group: [channels]}`; the median-probability model keeps those above ½.

        That is γ, or in the edge variant the chance that any weight that produces the channel is on.
        """
        if self._edges:
            return {group: -torch.expm1(-nats) for group, nats in self._edge_nats().items()}
        return {g: self.theta[site_key(name)].sigmoid() for name, (g, _) in self._gates.items() if g is not None}

    @torch.no_grad()
    def nats(self, weights: Mapping[str, float] | None = None, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """−log(1 − γ), the posterior's own nats at whatever weight, of the channels' own gates; empty in the edge variant."""
        return {g: softplus(self.theta[site_key(n)]) for n, (g, _) in self._gates.items() if g is not None}

    @torch.no_grad()
    def slab_kl(self) -> dict[str, Tensor]:
        """KL of the slabs of each channel's own weights, that of an open gate, `{group: [channels]}`."""
        found = {}
        for group in self._table[0] or []:
            total = torch.zeros(group.channels)
            for member in group.members:
                if member.role == "out" and member.tensor in self._slabs:
                    off_loc, off_scale, _ = self._slabs[member.tensor]
                    mu, rho = self.mu[site_key(member.tensor)], self.rho[site_key(member.tensor)]
                    slab = torch.distributions.Normal(mu, softplus(rho))
                    prior = torch.distributions.Normal(mu.new_tensor(off_loc), mu.new_tensor(off_scale))
                    total += per_unit(torch.distributions.kl_divergence(slab, prior), member.axis, member.index)
            found[group.name] = total
        return found

    @torch.no_grad()
    def start_at(self, information: Mapping[str, Tensor], weights: Mapping[str, float], kl_weight: float = 1.0) -> None:
        """logit γ = logit λ + (½ F − K) / w, K the weighted KL of the channel's slabs, up to :data:`SUREST`.

        K takes half of ½ F at the most where there is any: with few examples the slabs of a whole layer outweigh all that
        the data say, and a start is not to close it.
        """
        self.at_curvature = True
        slabs = self.slab_kl()
        for name, (group, _) in self._gates.items():
            if group is not None and group in information:
                lost = 0.5 * information[group].double()
                slab = kl_weight * slabs[group].double()
                gain = lost - torch.where(lost < IDLE, slab, torch.minimum(slab, 0.5 * lost))
                odds = self._prior_odds[name] + gain / weights.get(group, kl_weight)
                self.theta[site_key(name)].copy_(odds.clamp_max(SUREST))

    @torch.no_grad()
    def shares(self) -> dict[str, Tensor]:
        """In the edge variant each channel's part of its group's −log P(no weight on); else empty.

        Rows of different length hold different numbers of weights: their sums are not comparable
        between layers, their shares are.
        """
        return {group: nats / nats.sum().clamp_min(1e-12) for group, nats in self._edge_nats().items()}

    def _edge_nats(self) -> dict[str, Tensor]:
        """−log P(all weights that produce a channel are off), `{group: [channels]}`."""

        found = {}
        for group in self._table[0] or []:
            rows = [m for m in group.members if m.role == "out" and m.tensor in self._edges]
            if rows:
                parts = [per_unit(softplus(self._edges[m.tensor].detach()), m.axis, m.index) for m in rows]
                found[group.name] = torch.stack(parts).sum(0)
        return found

    @property
    def _edges(self) -> dict[str, Tensor]:
        """The logits of the edge variant by tensor."""
        return {
            name.removesuffix(GATE): self.theta[site_key(name)]
            for name, (group, _) in self._gates.items()
            if group is None
        }

    @torch.no_grad()
    def weight_odds(self) -> dict[str, Tensor]:
        return {name: theta.detach().clone() for name, theta in self._edges.items()}

    @torch.no_grad()
    def edge_inclusion(self) -> dict[str, Tensor]:
        """γ per weight of the edge variant, `{tensor name: tensor's shape}`."""
        return {name: theta.sigmoid() for name, theta in self._edges.items()}

    def zeros(self, threshold: float = 0.5) -> dict[str, tuple[int, int]]:
        """Weights that the edge variant switches off, `{tensor name: (zeros, all)}`."""
        return {name: (int((g <= threshold).sum()), g.numel()) for name, g in self.edge_inclusion().items()}

    def shrink(self, table: ChannelTable, plan: Any, *, copy: bool = True) -> SpikeSlabGuide:
        held, self._table = self._table, (None,)  # the copy gets the smaller table, not a copy of this one
        try:
            small = super().shrink(table, plan, copy=copy)
        finally:
            self._table = held
        assert isinstance(small, SpikeSlabGuide)
        small._table = (table.after(plan),)
        return small


def _start_rho(value: Tensor) -> float:
    """ρ at which softplus(ρ) is a tenth of the root mean square."""
    tenth = 0.1 * (float(value.square().mean().sqrt()) or 1.0)
    return tenth + math.log(-math.expm1(-tenth))  # log(expm1(tenth)), which overflows from 710 on
