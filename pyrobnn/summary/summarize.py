"""`summarize`: location and scale of every site, and one statistic per channel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels.parts import per_unit
from pyrobnn.distributions.base import base_distribution
from pyrobnn.distributions.hard_concrete import GateLogit, log_off
from pyrobnn.errors import ConfigError
from pyrobnn.guides.base import Guide, LikeTensor, site_layout
from pyrobnn.model import BayesianModel
from pyrobnn.summary.convergence import convergence, warn_at_chance
from pyrobnn.summary.evidence import noise_priors, weight_evidence, with_nats
from pyrobnn.summary.predictive import predictive_draws
from pyrobnn.summary.reading import independent_normals, site_draws, site_moments
from pyrobnn.summary.saliency import share_of_group
from pyrobnn.summary.types import ChannelSummary, Posterior, SiteSummary


def summarize(
    model: BayesianModel,
    guide: Any,
    *,
    draws: int = 100,
    seed: int = 0,
    sites: Collection[str] | str = (),
    data: Any = None,
) -> Posterior:
    """Read a fitted guide: per site, and per channel what the cut rules need.

    Args:
        model: the model, built with channel groups if channels are to be read.
        guide: trained by :func:`~pyrobnn.fit` or by stock `SVI`: this package's, an AutoGuide, or a function.
        draws: posterior draws to keep of channel-level quantities (0 for none).
        seed: of these draws.
        sites: names or patterns of further sites whose draws to keep (`"conv1.weight"`, `"*"` for all).
        data: images with targets, `(x, y)` or a split of a data set: the pointwise log-likelihood of the same draws
            is kept for `az.loo` and its kin.

    Returns:
        A :class:`Posterior`; nothing is cut yet (`kept` is all true). Its `convergence` says whether the
        posterior has moved since its start, and whether it still does.

    Raises:
        ConfigError: a pattern that matches no site, or `data` without draws.

    Warns:
        UserWarning: the posterior mean is no better than chance on the last batch, though the network that
            the model was built with is.
    """
    moments = site_moments(model, guide)
    wanted = _matching(moments, sites)
    exact = independent_normals(model, guide)
    found = {}
    for name, (loc, scale) in moments.items():
        owner = model.group_of_site(name)
        per_channel = owner is not None and loc.dim() == 1
        kind = "channel" if per_channel else "weight" if name in model.tensor_names else "other"
        found[name] = SiteSummary(
            # Copies: what the guide learns later must not change what was read.
            name,
            loc.cpu().float().clone(),
            scale.cpu().float().clone(),
            ("channel",) if per_channel else _dims(model, name, loc),
            kind,
            owner if per_channel else None,
            name in exact,
        )
    priors = {name: base_distribution(site["fn"]) for name, site in model.sites().items()}
    channels = {}
    own = isinstance(guide, Guide)
    kl_weight = float(model.history[-1].get("kl_weight", 1.0)) if model.history else 1.0
    inclusion, shares = (guide.inclusion(), guide.shares()) if own else ({}, {})
    nats = guide.nats(kl_weight=kl_weight) if own else {}
    shapes = _shapes(_tensors(model))
    for group in model.groups or []:
        summary = _channel_summary(model, group, found, inclusion, priors, kl_weight)
        if group.name in shares and group.name not in nats:
            summary.nats, summary.unit = share_of_group(shares[group.name], group, shapes), "share"
        channels[group.name] = summary
    posterior = with_nats(Posterior(found, channels), nats, noise_priors(model))
    posterior.net_widths = {name: (len(c.snr), len(c.snr)) for name, c in channels.items()}
    posterior.convergence = convergence(model, guide, {name: scale for name, (_, scale) in moments.items()})
    if draws:
        posterior.draws = site_draws(model, guide, draws, seed, wanted)
    if data is not None:
        posterior.predictive = predictive_draws(model, guide, data, draws, seed)
    warn_at_chance(model, moments)
    return posterior


def _matching(names: Mapping[str, Any], patterns: Collection[str] | str) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ConfigError(f"sites={pattern!r} matches no site; there are {', '.join(list(names)[:8])}")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def _dims(model: BayesianModel, site: str, value: Tensor) -> tuple[str, ...]:
    """Names of the axes of a site that is shaped like a network tensor, by the kind of its layer; else `dim_0`, …."""
    layout = site_layout(model, site)
    named: tuple[str, ...] = ()
    if isinstance(layout, LikeTensor):
        path, _, leaf = layout.name.rpartition(".")
        module = dict(model.net.named_modules()).get(path)
        spatial = ("kd", "kh", "kw")[3 - max(value.dim() - 2, 0) :] if 2 < value.dim() < 6 else ()
        if isinstance(module, nn.modules.conv._ConvNd):
            both = ("in_channel", "filter") if module.transposed else ("filter", "in_channel")
            named = ("filter",) if leaf == "bias" else (*both, *spatial)
        elif isinstance(module, nn.Linear):
            named = ("out_feature", "in_feature")
        elif isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.PReLU):
            named = ("channel",)
        elif isinstance(module, nn.Embedding):
            named = ("token", "feature")
        named = named[: value.dim()]
    return named if len(named) == value.dim() else tuple(f"dim_{k}" for k in range(value.dim()))


def _channel_summary(
    model: BayesianModel,
    group: Any,
    sites: Mapping[str, SiteSummary],
    inclusion: Mapping[str, Tensor],
    priors: Mapping[str, Any],
    kl_weight: float,
) -> ChannelSummary:
    name, n = group.name, group.channels
    kept = torch.ones(n, dtype=torch.bool)
    gates = _gate_logits(model, group, sites, priors)
    if gates is not None:
        return gates
    site = next((s for s in sites.values() if s.kind == "channel" and s.group == name), None)
    if name in inclusion:
        gamma = inclusion[name].detach().cpu().float()
        logit = torch.logit(gamma.clamp(1e-7, 1 - 1e-7))
        loc, scale = (site.loc, site.scale) if site is not None else (None, None)
        return ChannelSummary(name, gamma, torch.nn.functional.softplus(logit), "inclusion", kept, loc=loc, scale=scale)
    if site is not None and not bool(site.scale.any()):  # a point estimate has no noise to compare with
        magnitude = site.loc.abs()
        nats = share_of_group(magnitude.square(), group, _shapes(_tensors(model)))
        return ChannelSummary(name, magnitude, nats, "magnitude", kept, loc=site.loc, scale=site.scale, unit="share")
    if site is not None:
        snr = site.loc.abs() / site.scale.clamp_min(1e-12)
        evidence = _evidence(site.loc, site.scale, priors[site.name], kl_weight)
        return ChannelSummary(
            name, snr, 0.5 * snr.square(), "snr", kept, evidence=evidence, loc=site.loc, scale=site.scale
        )
    return _from_weights(model, group, sites, kept, priors, kl_weight)


def _gate_logits(
    model: BayesianModel, group: Any, sites: Mapping[str, SiteSummary], priors: Mapping[str, Any]
) -> ChannelSummary | None:
    """Hard-concrete gates of a group's channels, or of the weights that produce them; None where there are none.

    Inclusion is P(u > 0) of the gate's logit u, taken as Gaussian (exact for AutoNormal and `MeanField`), or the
    chance that any of the weights is on; `nats` is minus the log of its complement.
    """
    kept = torch.ones(group.channels, dtype=torch.bool)
    for site in sites.values():
        if site.group == group.name and isinstance(priors[site.name], GateLogit):
            nats = -log_off(site.loc, site.scale)
            return ChannelSummary(
                group.name, -torch.expm1(-nats), nats, "inclusion", kept, loc=site.loc, scale=site.scale
            )
    edges = [m for m in group.members if m.role == "out" and f"gate_logit.{m.tensor}" in sites]
    if not edges:
        return None
    total = torch.zeros(group.channels)
    for member in edges:
        site = sites[f"gate_logit.{member.tensor}"]
        total += per_unit(-log_off(site.loc, site.scale), member.axis, member.index)
    # Rows of different length hold different numbers of weights: their sums say how large a layer is.
    share = share_of_group(total, group, _shapes(_tensors(model)))
    return ChannelSummary(group.name, -torch.expm1(-total), share, "inclusion", kept, unit="share")


def _evidence(loc: Tensor, scale: Tensor, prior: Any, kl_weight: float) -> Tensor | None:
    """Log evidence for not being 0 by coordinate, at KL weight 1; None unless the prior is a Gaussian centred at 0."""
    if not isinstance(prior, torch.distributions.Normal) or bool(prior.loc.any()):
        return None
    return weight_evidence(loc, scale, prior.scale.cpu(), kl_weight).float()


def _from_weights(
    model: BayesianModel,
    group: Any,
    sites: Mapping[str, SiteSummary],
    kept: Tensor,
    priors: Mapping[str, Any],
    kl_weight: float,
) -> ChannelSummary:
    """Weight-level posteriors: a channel's taps are the weights of its filters and those that read it.

    SNR squared is the mean of mu^2 / sigma^2 over the taps, `evidence` the sum of their
    Savage-Dickey log ratios. Point estimates (no uncertain tap) give a magnitude instead. `nats` is the
    channel's share of SNR squared: tap counts and posterior scales differ so much between layers that a sum
    over taps would only say how large a layer is (tried on ResNet-20: the first stage went down to one
    channel a block).
    """
    tensors = _tensors(model)
    members = [m for m in group.members if m.role in ("out", "in") and tensors[m.tensor].dim() >= 2]
    random = [m for m in members if m.tensor in sites and bool((sites[m.tensor].scale > 0).any())]
    if not random:
        return _from_magnitudes(group, members, tensors, sites, kept)
    total, taps = torch.zeros(group.channels), torch.zeros(group.channels)
    evidence: Tensor | None = torch.zeros(group.channels)
    for member in random:
        site = sites[member.tensor]
        ratio = (site.loc / site.scale.clamp_min(1e-12)).square()
        total += per_unit(ratio, member.axis, member.index)
        taps += per_unit(torch.ones_like(ratio), member.axis, member.index)
        part = _evidence(site.loc, site.scale, priors[site.name], kl_weight)
        if part is None or evidence is None:
            evidence = None
        else:
            evidence = evidence + per_unit(part.expand(ratio.shape), member.axis, member.index)
    snr = (total / taps.clamp_min(1)).sqrt()
    return ChannelSummary(
        group.name,
        snr,
        share_of_group(snr.square(), group, _shapes(tensors)),
        "snr",
        kept,
        evidence=evidence,
        unit="share",
    )


def _from_magnitudes(
    group: Any, members: list[Any], tensors: Mapping[str, Tensor], sites: Mapping[str, SiteSummary], kept: Tensor
) -> ChannelSummary:
    """Point estimates: geometric mean of the norms of a channel's filters and of its readers."""
    norms: dict[str, Tensor] = {}
    for member in members:
        value = sites[member.tensor].loc if member.tensor in sites else tensors[member.tensor].detach().float().cpu()
        part = per_unit(value.square(), member.axis, member.index)
        norms[member.role] = norms.get(member.role, torch.zeros(group.channels)) + part
    squared = torch.stack(list(norms.values())) if norms else torch.zeros(1, group.channels)
    magnitude = squared.clamp_min(1e-24).log().mean(0).mul(0.5).exp()
    share = share_of_group(magnitude.square(), group, _shapes(tensors))
    return ChannelSummary(group.name, magnitude, share, "magnitude", kept, unit="share")


def _tensors(model: BayesianModel) -> dict[str, Tensor]:
    return dict(model.net.named_parameters()) | dict(model.net.named_buffers())


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
