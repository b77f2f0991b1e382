"""What the posterior says: location and scale per site, and one statistic per channel."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrobnn.channels.parts import per_unit
from pyrobnn.distributions.base import base_distribution
from pyrobnn.distributions.hard_concrete import GateLogit, log_off
from pyrobnn.errors import ConfigError
from pyrobnn.guides.base import Guide
from pyrobnn.guides.function import NoLatents
from pyrobnn.guides.local import local_params
from pyrobnn.model import BayesianModel
from pyrobnn.summary.saliency import removal_cost
from pyrobnn.summary.types import ChannelSummary, Posterior, SiteSummary

SiteMoments = dict[str, tuple[Tensor, Tensor]]


def site_moments(model: BayesianModel, guide: Any, draws: int = 256) -> SiteMoments:
    """Posterior mean and standard deviation of each latent site, `{site: (mean, sd)}`.

    Exact where the guide's sites are independent distributions with known moments (this package's
    guides, AutoNormal on real sites, AutoDelta, most hand-written ones); else by the law of total
    variance over `draws` runs of the guide, with a seed of its own (the global RNG state is kept).
    """
    guide = find_guide(model, guide)
    if isinstance(guide, Guide | NoLatents):
        return guide.moments()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _moments_by_running(model, guide, draws)


def _moments_by_running(model: BayesianModel, guide: Any, draws: int) -> SiteMoments:
    sites = list(model.sites())
    first = _moments_of_run(guide, model, sites)
    second = _moments_of_run(guide, model, sites)
    if all(torch.equal(first[s][0], second[s][0]) and torch.equal(first[s][1], second[s][1]) for s in sites):
        return {site: (mean, variance.sqrt()) for site, (mean, variance) in first.items()}
    mean = {site: torch.zeros_like(first[site][0]) for site in sites}
    between = {site: torch.zeros_like(first[site][0]) for site in sites}
    within = {site: torch.zeros_like(first[site][0]) for site in sites}
    for count in range(1, draws + 1):
        run = _moments_of_run(guide, model, sites)
        for site in sites:
            m, v = run[site]
            delta = m - mean[site]
            mean[site] += delta / count
            between[site] += delta * (m - mean[site])
            within[site] += (v - within[site]) / count
    return {site: (mean[site], (within[site] + between[site] / (draws - 1)).sqrt()) for site in sites}


def find_guide(model: BayesianModel, guide: Any) -> Any:
    """A function that `fit` has trained stands for the module that holds its parameters."""
    return guide if isinstance(guide, nn.Module) else model.function_guides.get(guide, guide)


def run_guide(guide: Any, model: BayesianModel) -> Any:
    """The trace of one draw from a guide, without gradients; nothing else sees its sites."""
    # PyroModules are read through their own parameters, whichever road trained them, so that
    # nothing is written to (or taken from) a global store that another model may have used.
    scope = local_params(guide) if isinstance(guide, nn.Module) else nullcontext()
    with torch.no_grad(), scope, poutine.block():
        return poutine.trace(guide).get_trace(*model.seen)


def _moments_of_run(guide: Any, model: BayesianModel, sites: list[str]) -> SiteMoments:
    trace = run_guide(guide, model)
    found = {}
    for name in sites:
        if name not in trace.nodes:
            raise ConfigError(f"the guide has no site {name!r}; it must sample every latent site of the model")
        node = trace.nodes[name]
        fn = base_distribution(node["fn"])
        auxiliary = trace.nodes.get(f"{name}_unconstrained")
        value = node["value"].detach()
        if auxiliary is not None and torch.equal(auxiliary["value"], value):
            fn = base_distribution(auxiliary["fn"])
        try:
            mean, variance = fn.mean.expand(value.shape), fn.variance.expand(value.shape)
        except (NotImplementedError, AttributeError):
            mean, variance = value, torch.zeros_like(value)
        found[name] = (mean.detach().float(), variance.detach().float())
    return found


def deterministic_net(model: BayesianModel, guide: Any) -> nn.Module:
    """The plain network at the posterior means, noise folded into the weights."""
    return model.deterministic({site: mean for site, (mean, _) in site_moments(model, guide).items()})


def summarize(model: BayesianModel, guide: Any, *, draws: int = 100, seed: int = 0) -> Posterior:
    """Read a fitted guide: per site, and per channel what the cut rules need.

    Args:
        model: the model, built with channel groups if channels are to be read.
        guide: trained by :func:`~pyrobnn.fit` or by stock `SVI`: this package's, an AutoGuide, or a function.
        draws: posterior draws to keep of channel-level quantities (0 for none).
        seed: of these draws.

    Returns:
        A :class:`Posterior`; nothing is cut yet (`kept` is all true).
    """
    moments = site_moments(model, guide)
    sites = {}
    for name, (loc, scale) in moments.items():
        owner = model.group_of_site(name)
        per_channel = owner is not None and loc.dim() == 1
        kind = "channel" if per_channel else "weight" if name in model.tensor_names else "other"
        dims = _dims(name, loc, kind)
        sites[name] = SiteSummary(
            # Copies: what the guide learns later must not change what was read.
            name,
            loc.cpu().float().clone(),
            scale.cpu().float().clone(),
            dims,
            kind,
            owner if per_channel else None,
        )
    priors = {name: base_distribution(site["fn"]) for name, site in model.sites().items()}
    channels = {}
    own = isinstance(guide, Guide)
    inclusion, nats, shares = (guide.inclusion(), guide.nats(), guide.shares()) if own else ({}, {}, {})
    shapes = _shapes({**dict(model.net.named_parameters()), **dict(model.net.named_buffers())})
    for group in model.groups or []:
        summary = _channel_summary(model, group, sites, inclusion, priors)
        if group.name in nats:
            summary.nats = nats[group.name].detach().cpu().float()
        elif group.name in shares:
            summary.nats, summary.unit = removal_cost(shares[group.name], group, shapes), "share"
        channels[group.name] = summary
    posterior = Posterior(sites, channels)
    posterior.net_widths = {name: (len(c.snr), len(c.snr)) for name, c in channels.items()}
    if draws:
        posterior.draws = channel_draws(model, guide, draws, seed)
    return posterior


def _dims(name: str, value: Tensor, kind: str) -> tuple[str, ...]:
    if kind == "channel":
        return ("channel",)
    if kind == "weight" and value.dim() >= 2:
        spatial = {3: ("kw",), 4: ("kh", "kw"), 5: ("kd", "kh", "kw")}.get(value.dim(), ())
        return ("filter", "in_channel", *spatial)
    return tuple(f"dim_{k}" for k in range(value.dim()))


def _channel_summary(
    model: BayesianModel,
    group: Any,
    sites: Mapping[str, SiteSummary],
    inclusion: Mapping[str, Tensor],
    priors: Mapping[str, Any],
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
        nats = (magnitude / magnitude.square().mean().sqrt().clamp_min(1e-12)).square()
        return ChannelSummary(name, magnitude, nats, "magnitude", kept, loc=site.loc, scale=site.scale, unit="share")
    if site is not None:
        snr = site.loc.abs() / site.scale.clamp_min(1e-12)
        evidence = log_evidence(site.loc, site.scale, priors[site.name])
        return ChannelSummary(
            name, snr, 0.5 * snr.square(), "snr", kept, evidence=evidence, loc=site.loc, scale=site.scale
        )
    return _from_weights(model, group, sites, kept, priors)


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
    shapes = {name: tuple(tensor.shape) for name, tensor in model.view().tensors.items()}
    return ChannelSummary(group.name, -torch.expm1(-total), removal_cost(total, group, shapes), "inclusion", kept)


def log_evidence(loc: Tensor, scale: Tensor, prior: Any) -> Tensor | None:
    """log p(0) - log q(0) by coordinate: the evidence that the Savage-Dickey ratio gives for not being 0.

    None unless the prior is a Gaussian centred at 0.
    """
    if not isinstance(prior, torch.distributions.Normal) or bool(prior.loc.any()):
        return None
    scale = scale.clamp_min(1e-12)
    return 0.5 * (loc / scale).square() - torch.log(prior.scale.cpu() / scale)


def _from_weights(
    model: BayesianModel, group: Any, sites: Mapping[str, SiteSummary], kept: Tensor, priors: Mapping[str, Any]
) -> ChannelSummary:
    """Weight-level posteriors: a channel's taps are the weights of its filters and those that read it.

    SNR squared is the mean of mu^2 / sigma^2 over the taps, `evidence` the sum of their
    Savage-Dickey log ratios. Point estimates (no uncertain tap) give a magnitude instead. `nats` is the
    removal cost of SNR squared: tap counts and posterior scales differ so much between layers that a sum
    over taps would only say how large a layer is (tried on ResNet-20: the first stage went down to one
    channel a block).
    """
    tensors = dict(model.net.named_parameters()) | dict(model.net.named_buffers())
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
        part = log_evidence(site.loc, site.scale, priors[site.name])
        if part is None or evidence is None:
            evidence = None
        else:
            evidence = evidence + per_unit(part.expand(ratio.shape), member.axis, member.index)
    snr = (total / taps.clamp_min(1)).sqrt()
    return ChannelSummary(
        group.name,
        snr,
        removal_cost(snr.square(), group, _shapes(tensors)),
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
    cost = removal_cost(magnitude.square(), group, _shapes(tensors))
    return ChannelSummary(group.name, magnitude, cost, "magnitude", kept, unit="share")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def channel_draws(model: BayesianModel, guide: Any, draws: int, seed: int = 0) -> dict[str, Tensor]:
    """Draws of channel-level sites, `{site: [S, channels]}`, and of filter norms where weights are random.

    A weight-level posterior gives `{group}.norm`: the L2 norm of each channel's filter, one draw at a time
    (memory grows with the channels, not with the weights).
    """
    guide = find_guide(model, guide)
    if isinstance(guide, NoLatents):
        return {}
    found: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(draws):
            trace = run_guide(guide, model)
            for name, node in trace.nodes.items():
                if node["type"] == "sample" and model.group_of_site(name) is not None and node["value"].dim() == 1:
                    found.setdefault(name, []).append(node["value"].cpu().float())
            for group in model.groups or []:
                total = None
                for member in group.members:
                    node = trace.nodes.get(member.tensor)
                    if node is not None and member.role == "out" and node["value"].dim() >= 2:
                        part = per_unit(node["value"].square(), member.axis, member.index)
                        total = part if total is None else total + part
                if total is not None:
                    found.setdefault(f"{group.name}.norm", []).append(total.sqrt())
    return {name: torch.stack(rows) for name, rows in found.items()}
