"""Posteriors of channel noise: Gaussian, and truncated log-normal for Structured Bayesian Pruning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor, nn

from pyrobnn.distributions import ARD, LogUniform, TruncatedLogNormal, TwoSpike, responsibility
from pyrobnn.errors import ConfigError
from pyrobnn.guides.base import Guide, PerChannel, site_key
from pyrobnn.guides.mean_field import MeanField
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
    def nats(self, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """What the likelihood loses without a channel, under spikes; for other priors empty.

        A responsibility is 1 to the last digit for every channel whose noise stays near 1, needed or not; how much
        narrower than the spike the data made its posterior still tells them apart.

        Args:
            kl_weight: that the noise was fitted with (see :func:`spike_loss`).
        """
        moments, found = self.moments(), {}
        for name, group, prior in self._current():
            loc, scale = moments[name]
            if isinstance(prior, ARD):
                found[group] = ard_loss(loc.abs() / scale, kl_weight)
            elif (tau := _spike_width(prior)) is not None:
                found[group] = spike_loss(loc, scale, tau, kl_weight)
        return found


def _spike_width(prior: Any) -> float | None:
    if isinstance(prior, TwoSpike):
        return float(prior.scale1.flatten()[0])
    return float(prior.scale.flatten()[0]) if isinstance(prior, torch.distributions.Normal) else None


def spike_loss(loc: Tensor, scale: Tensor, tau: float, kl_weight: float = 1.0) -> Tensor:
    """Nats of log-likelihood between θ = loc and θ = 0, read off a posterior N(loc, scale²) under a spike of width tau.

    Likelihood and w-weighted KL balance in the width where h = w (1/scale² − 1/tau²), so a likelihood of curvature h
    with its peak at `loc` loses ½ h loc² (a quadratic one exactly). A width is fitted to a few per cent at best, less
    while its spike still narrows: below 1 % of the spike's curvature h is not told from 0, and counts as so much.

    Args:
        loc, scale: of the noise, `[channels]`.
        tau: width of the spike.
        kl_weight: w, of the KL that the noise was fitted with.
    """
    return 0.5 * kl_weight * loc.square() * (scale.pow(-2) - tau**-2).clamp_min(0.01 * tau**-2)


def ard_loss(snr: Tensor, weight: float) -> Tensor:
    """Nats of log-likelihood lost without a channel, read off its fitted noise under a weighted ARD KL.

    Where w * 1/2 log(1 + mu^2 / sigma^2) balances a likelihood of curvature h in the noise, the
    stationary sigma gives 1/2 h mu^2 = 1/2 w SNR^4 / (1 + SNR^2). So the price in w does not count
    twice when the loss is divided by the cost saved.
    """
    square = snr.square()
    return 0.5 * weight * square.square() / (1 + square)


WIDEST = 10.0  # noise that a start gives a channel at the most: as good as none is left of it


def ard_variance(information: Tensor, weight: float) -> Tensor:
    """σ² of N(1, σ²) noise where w ½ log(1 + 1/σ²) balances a likelihood of curvature F: F σ² (1 + σ²) = w."""
    ratio = weight / information.double().clamp_min(1e-30)
    # 2 w/F / (1 + √(1 + 4 w/F)): the difference of the textbook's root loses all digits where F is large.
    return (2 * ratio / (1 + (1 + 4 * ratio).sqrt())).clamp_max(WIDEST**2)


def spike_variance(information: Tensor, weight: float, tau: float) -> Tensor:
    """σ² where a spike of width τ, at weight w, and a likelihood of curvature F balance: w = (F + w/τ²) σ²."""
    return weight / (information.double() + weight / tau**2)


def stationary_loss(posterior: TruncatedLogNormal) -> Tensor:
    """½ h of the likelihood −½ h (θ − 1)² under which this σ is stationary, per unit of a log-uniform KL's weight.

    Where ½ h E(θ − 1)² balances w KL, ½ h / w = −(∂KL/∂σ) / (∂E(θ − 1)²/∂σ), near θ = 1 that is 1 / 2σ². 0 where the
    spread does not grow with σ: no likelihood holds such a channel.
    """
    with torch.enable_grad():
        scale = posterior.scale.detach().double().requires_grad_()
        q = TruncatedLogNormal(posterior.loc.detach().double(), scale, posterior.a, posterior.b, validate_args=False)
        risk = q.variance + (q.mean - 1).square()
        (spread,) = torch.autograd.grad(risk.sum(), scale, retain_graph=True)
        (entropy,) = torch.autograd.grad(q.entropy_log().sum(), scale)
    return torch.where(spread > 1e-9, entropy / spread.clamp_min(1e-9), 0.0).clamp_min(0.0)


def _stationary_log_scale(lost: Tensor, a: float, b: float) -> Tensor:
    """log σ at μ = 0 where :func:`stationary_loss` is `lost`; infinite where it is less than at any narrow σ."""
    grid = torch.linspace(math.log(1e-4), 0.0, 200, dtype=torch.float64)
    q = TruncatedLogNormal(torch.zeros_like(grid), grid.exp(), a, b, validate_args=False)
    losses = stationary_loss(q).log()  # falls with σ
    wanted = lost.cpu().clamp_min(1e-30).log()
    right = torch.searchsorted(-losses, -wanted).clamp(1, len(grid) - 1)
    part = (wanted - losses[right - 1]) / (losses[right] - losses[right - 1])
    found = grid[right - 1] + part.clamp(0, 1) * (grid[right] - grid[right - 1])
    return torch.where(wanted < losses[-1], torch.inf, found).to(lost.device)


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
        for name, (a, b) in self._bounds.items():
            group, key = name.removesuffix(".noise"), site_key(name)
            if group in information:
                lost = 0.5 * information[group].double() / weights.get(group, kl_weight)
                self.loc[key].zero_()
                self.log_scale[key].copy_(_stationary_log_scale(lost, a, b).clamp(*self.clip_log_scale))

    @torch.no_grad()
    def snr(self) -> dict[str, Tensor]:
        """E θ / sd θ of every noise site, `{site: [channels]}`; the published rule keeps channels above 1."""
        return {name: q.snr for name, q in self._posteriors().items()}

    def _posteriors(self) -> dict[str, TruncatedLogNormal]:
        return {name: self.posterior(name) for name in self._bounds}
