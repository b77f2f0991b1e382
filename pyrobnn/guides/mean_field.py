"""The direct mean-field guide: an independent Normal (or LogNormal) per coordinate.

Sites are sampled from the Normal itself, not through a Delta of an auxiliary
site as in stock AutoGuides, so the KL to a Gaussian prior is closed-form and
local reparameterisation can read mean and variance off the site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrobnn.errors import ConfigError
from pyrobnn.guides.base import Guide, site_key, site_layout
from pyrobnn.guides.flat import DrawnNormal, Flat, Pack, views_like

if TYPE_CHECKING:
    from pyrobnn.model import BayesianModel


class MeanField(Guide):
    """Independent Normal posterior for real sites, LogNormal for positive sites.

    Args:
        model: a :class:`~pyrobnn.BayesianModel`.
        init_scale: initial posterior standard deviation, relative to the root mean square of the
            site's initial value (of 1 where that is 0). With trained weights 0.1 keeps the function.
        scale_lr: factor on the guide's learning rate for the (log) scales. Locations that start at
            trained weights should move little, scales have orders of magnitude to go.
        init: initial locations per site; missing sites start where the prior says (trained weights,
            noise 1), else at the prior's mean.

    Raises:
        ConfigError: a site whose support is neither real nor positive.
    """

    def __init__(
        self,
        model: BayesianModel,
        *,
        init_scale: float = 0.1,
        scale_lr: float = 1.0,
        init: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.scale_lr = scale_lr
        self._packs: tuple[Pack | None, Pack | None] = (None, None)
        if init_scale <= 0:
            raise ConfigError(f"init_scale must be positive, got {init_scale}; 0.1 suits trained weights")
        self.loc = nn.ParameterDict()
        self.log_scale = nn.ParameterDict()
        self._sites: dict[str, tuple[bool, int]] = {}
        start = {**model.initial_values(), **(init or {})}
        for name, site in model.sites().items():
            positive = _is_positive(name, site["fn"].support)
            value = start.get(name, site["value"]).detach().float().clone()
            if positive:
                value = value.clamp_min(1e-8).log()
                scale = torch.full_like(value, init_scale)
            else:
                rms = value.square().mean().sqrt().item() or 1.0
                scale = torch.full_like(value, init_scale * rms)
            key = site_key(name)
            self.loc[key] = nn.Parameter(value)
            self.log_scale[key] = nn.Parameter(scale.log())
            self._sites[name] = (positive, site["fn"].event_dim)
            if (layout := site_layout(model, name)) is not None:
                self.layout[f"loc.{key}"] = self.layout[f"log_scale.{key}"] = layout

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; arguments (the batch) are ignored."""
        loc, log_scale = self.loc, self.log_scale
        draws = {}
        for (name, (positive, event_dim)), noise in zip(self._sites.items(), self._standard_noise(), strict=True):
            mean, scale = loc[site_key(name)], log_scale[site_key(name)].exp()
            normal = DrawnNormal(mean, scale)
            normal.drawn = torch.addcmul(mean, scale, noise)
            q: Any = normal
            if positive:
                q = dist.LogNormal(mean, scale)
                q.base_dist = normal
            draws[name] = pyro.sample(name, q.to_event(event_dim))
        return draws

    def _standard_noise(self) -> list[Tensor]:
        """Standard normal noise for every site, from one draw."""
        own: Any = self._modules["loc"]  # past __getattr__, which would announce every parameter
        values = list(own.values())
        noise = torch.randn(sum(v.numel() for v in values), dtype=values[0].dtype, device=values[0].device)
        return views_like(noise, values)

    def flat(self) -> Flat | None:
        """All sites as flat vectors; None where a site is positive, or shares scales between coordinates."""
        own: Any = self._modules
        parameters = [list(own[part].values()) for part in ("loc", "log_scale")]
        shared = any(m.shape != s.shape for m, s in zip(*parameters, strict=True))
        if shared or any(positive for positive, _ in self._sites.values()):
            return None
        packs = [
            pack if pack is not None and pack.holds(those) else Pack(those)
            for pack, those in zip(self._packs, parameters, strict=True)
        ]
        self._packs = (packs[0], packs[1])
        return Flat(list(self._sites), *self._packs)

    def lr_factor(self, parameter: str) -> float:
        return self.scale_lr if parameter.startswith("log_scale.") else 1.0

    def scale_parameters(self) -> dict[str, tuple[str, float]]:
        """`{parameter name: (site, entries of the site for each of its own)}` of all log σ."""
        return {
            f"log_scale.{site_key(name)}": (
                name,
                self.loc[site_key(name)].numel() / self.log_scale[site_key(name)].numel(),
            )
            for name in self._sites
        }

    @torch.no_grad()
    def set_scale(self, site: str, mean: Tensor, sd: Tensor) -> None:
        """Match mean and standard deviation of one site (method of moments for positive sites)."""
        key = site_key(site)
        if self._sites[site][0]:
            log_variance = torch.log1p((sd / mean.clamp_min(1e-8)).square())
            self.loc[key].copy_(mean.clamp_min(1e-8).log() - 0.5 * log_variance)
            self.log_scale[key].copy_(0.5 * log_variance.clamp_min(1e-16).log())
        else:
            self.loc[key].copy_(mean)
            self.log_scale[key].copy_(sd.clamp_min(1e-8).log())

    @torch.no_grad()
    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for name, (positive, _) in self._sites.items():
            loc, scale = self.loc[site_key(name)].detach(), self.log_scale[site_key(name)].detach().exp()
            if positive:
                normal = dist.LogNormal(loc, scale)
                loc, scale = normal.mean, normal.variance.sqrt()
            found[name] = (loc, scale)
        return found


def _is_positive(name: str, support: Any) -> bool:
    base = support.base_constraint if isinstance(support, constraints.independent) else support
    if base is constraints.real:
        return False
    if isinstance(base, constraints.greater_than | constraints.greater_than_eq) and math.isclose(base.lower_bound, 0):
        return True
    raise ConfigError(
        f"MeanField has a family for real and positive sites; site {name!r} has support {base}: "
        "use pyro.infer.autoguide.AutoNormal or a guide of your own"
    )
