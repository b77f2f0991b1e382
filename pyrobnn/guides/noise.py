"""Posteriors of channel noise: Gaussian, and truncated log-normal for Structured Bayesian Pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn

from pyrobnn.distributions import ARD, LogUniform, TruncatedLogNormal, TwoSpike, responsibility
from pyrobnn.errors import ConfigError
from pyrobnn.guides.base import Guide, PerChannel, site_key
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.guides.noise_balance import (
    ard_loss,
    ard_variance,
    log_uniform_loss,
    spike_loss,
    spike_variance,
    stationary_log_scale,
)
from pyrobnn.priors.noise import ChannelNoise

if TYPE_CHECKING:
    from pyrobnn.model import BayesianModel


def bare(fn: Any) -> Any:
    """The distribution inside `Independent` and expansions."""
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.TransformedDistribution):
        fn = fn.base_dist
    return fn


class NormalNoise(MeanField):
    """Gaussian channel noise, N(1, init_scale²) at the start, for the ARD, spike and two-spike priors.

    A :class:`MeanField` that starts narrow and knows what noise is read for. Weight sites, if the
    prior has any, get Normals too.

    Args:
        model: a :class:`~pyrobnn.BayesianModel` with a noise prior.
        init_scale: initial standard deviation of the noise (of weights: relative to their size).
        init: initial locations per site.
    """

    def __init__(
        self, model: BayesianModel, *, init_scale: float = 0.05, init: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(model, init_scale=init_scale, init=init)
        self._noise = [name for name in self._sites if name.endswith(".noise")]
        self.attach(model)

    def attach(self, model: BayesianModel) -> None:
        self._prior = (model.prior,)
        sites = model.sites()
        groups = {name: model.group_of_site(name) for name in self._noise}
        self._spikes = {name: (g, bare(sites[name]["fn"])) for name, g in groups.items() if g is not None}

    def _current(self) -> Iterator[tuple[str, str, Any]]:
        """Noise sites, their groups, and the prior as it is now: widths of spikes may have moved since the start."""
        prior = self._prior[0]
        for name, (group, first) in self._spikes.items():
            yield name, group, prior.distribution(torch.zeros(())) if isinstance(prior, ChannelNoise) else first

    @torch.no_grad()
    def start_at(self, information: Mapping[str, Tensor], weights: Mapping[str, float], kl_weight: float = 1.0) -> None:
        self.at_curvature = True
        for name, group, prior in self._current():
            if group in information:
                f, w, tau = information[group].double(), weights.get(group, kl_weight), _spike_width(prior)
                variance = ard_variance(f, w) if tau is None else spike_variance(f, w, tau)
                loc = self.moments()[name][0]
                self.set_scale(name, loc, variance.sqrt().to(loc))

    @torch.no_grad()
    def snr(self) -> dict[str, Tensor]:
        """|μ| / σ of every noise site, `{site: [channels]}`."""
        return {name: loc.abs() / scale for name, (loc, scale) in self.moments().items() if name in self._noise}

    @torch.no_grad()
    def inclusion(self) -> dict[str, Tensor]:
        """Responsibility of the spike at 1 under a two-spike prior, `{group: [channels]}`; else empty."""
        moments = self.moments()
        return {
            group: responsibility(torch.distributions.Normal(*moments[name]), p)
            for name, group, p in self._current()
            if isinstance(p, TwoSpike)
        }

    @torch.no_grad()
    def nats(self, weights: Mapping[str, float] | None = None, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """What the likelihood loses without a channel, under ARD and spikes; for other priors empty.

        A responsibility is 1 to the last digit for every channel whose noise stays near 1, needed or not; how much
        narrower than the spike the data made its posterior still tells them apart.
        """
        moments, found = self.moments(), {}
        for name, group, prior in self._current():
            loc, scale = moments[name]
            weight = (weights or {}).get(group, kl_weight)
            if isinstance(prior, ARD):
                found[group] = ard_loss(loc.abs() / scale, weight)
            elif (tau := _spike_width(prior)) is not None:
                found[group] = spike_loss(loc, scale, tau, weight)
        return found


def _spike_width(prior: Any) -> float | None:
    if isinstance(prior, TwoSpike):
        return float(prior.scale1.flatten()[0])
    return float(prior.scale.flatten()[0]) if isinstance(prior, torch.distributions.Normal) else None


class _WithoutNoise:
    """The model as a guide sees it once the log-uniform sites are taken care of."""

    def __init__(self, model: BayesianModel, taken: set[str]) -> None:
        self._model, self._taken = model, taken
        self.tensor_names, self.group_of_site = model.tensor_names, model.group_of_site

    def sites(self) -> dict[str, dict[str, Any]]:
        return {name: site for name, site in self._model.sites().items() if name not in self._taken}

    def initial_values(self) -> dict[str, Tensor]:
        return {name: v for name, v in self._model.initial_values().items() if name not in self._taken}


class TruncatedLogNormalNoise(Guide):
    """Truncated log-normal noise, the posterior of Structured Bayesian Pruning (Neklyudov et al. 2017).

    Every site with a :class:`LogUniform` prior gets log θ ~ N(μ, σ²) on the prior's [a, b]; other sites
    (weights) a :class:`MeanField`. μ and log σ are clipped where they are used, as in the released code.

    Args:
        model: a :class:`~pyrobnn.BayesianModel` with a log-uniform noise prior.
        init_loc: initial μ.
        init_log_scale: initial log σ.
        clip_loc: range of μ.
        clip_log_scale: range of log σ.

    Raises:
        ConfigError: no site has a log-uniform prior, or an empty clipping range.
    """

    def __init__(
        self,
        model: BayesianModel,
        *,
        init_loc: float = 0.0,
        init_log_scale: float = -5.0,
        clip_loc: tuple[float, float] = (-20.0, 5.0),
        clip_log_scale: tuple[float, float] = (-20.0, 5.0),
    ) -> None:
        super().__init__()
        for what, (low, high) in (("clip_loc", clip_loc), ("clip_log_scale", clip_log_scale)):
            if not low < high:
                raise ConfigError(f"{what} must be a range (low, high) with low < high, got ({low}, {high})")
        self.clip_loc, self.clip_log_scale = clip_loc, clip_log_scale
        self.loc = nn.ParameterDict()
        self.log_scale = nn.ParameterDict()
        self._bounds: dict[str, tuple[float, float]] = {}
        self._groups: dict[str, str] = {}
        sites = model.sites()
        for name, site in sites.items():
            p = bare(site["fn"])
            if not isinstance(p, LogUniform):
                continue
            self._bounds[name] = (p.a, p.b)
            key = site_key(name)
            self.loc[key] = nn.Parameter(torch.full_like(site["value"], init_loc))
            self.log_scale[key] = nn.Parameter(torch.full_like(site["value"], init_log_scale))
            if (group := model.group_of_site(name)) is not None:
                self._groups[name] = group
                self.layout[f"loc.{key}"] = self.layout[f"log_scale.{key}"] = PerChannel(group)
        if not self._bounds:
            raise ConfigError(
                "TruncatedLogNormalNoise found no site with a log-uniform prior: use priors.LogUniformNoise, "
                "or guides.NormalNoise for Gaussian noise"
            )
        self.rest: MeanField | None = None
        if set(sites) - set(self._bounds):
            self.rest = MeanField(_WithoutNoise(model, set(self._bounds)))  # type: ignore[arg-type]
            self.layout.update({f"rest.{name}": layout for name, layout in self.rest.layout.items()})

    def posterior(self, site: str) -> TruncatedLogNormal:
        """The noise posterior of one site, batch shape `[channels]`."""
        key = site_key(site)
        loc = self.loc[key].clamp(*self.clip_loc)
        scale = self.log_scale[key].clamp(*self.clip_log_scale).exp()
        return TruncatedLogNormal(loc, scale, *self._bounds[site], validate_args=False)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; arguments (the batch) are ignored."""
        draws = {name: pyro.sample(name, self.posterior(name).to_event(1)) for name in self._bounds}
        return {**draws, **(self.rest() if self.rest is not None else {})}

    @torch.no_grad()
    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        found = {name: (q.mean, q.variance.sqrt()) for name, q in self._posteriors().items()}
        return {**found, **(self.rest.moments() if self.rest is not None else {})}

    @torch.no_grad()
    def start_at(self, information: Mapping[str, Tensor], weights: Mapping[str, float], kl_weight: float = 1.0) -> None:
        """μ = 0, the greatest entropy of log θ ≤ 0 for its second moment, and the stationary σ; else the prior."""
        self.at_curvature = True
        for name, (a, b) in self._bounds.items():
            group, key = self._groups.get(name), site_key(name)
            if group is not None and group in information:
                lost = 0.5 * information[group].double() / weights.get(group, kl_weight)
                self.loc[key].zero_()
                self.log_scale[key].copy_(stationary_log_scale(lost, a, b).clamp(*self.clip_log_scale))

    @torch.no_grad()
    def nats(self, weights: Mapping[str, float] | None = None, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """½ h of every channel's noise, by :func:`~pyrobnn.guides.noise_balance.log_uniform_loss`."""
        return {
            group: log_uniform_loss(self.posterior(name), (weights or {}).get(group, kl_weight))
            for name, group in self._groups.items()
        }

    @torch.no_grad()
    def snr(self) -> dict[str, Tensor]:
        """E θ / sd θ of every noise site, `{site: [channels]}`; the published rule keeps channels above 1."""
        return {name: q.snr for name, q in self._posteriors().items()}

    def _posteriors(self) -> dict[str, TruncatedLogNormal]:
        return {name: self.posterior(name) for name in self._bounds}
