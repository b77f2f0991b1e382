"""Reads a guide: runs, means and standard deviations of its sites, draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrobnn.channels.parts import per_unit
from pyrobnn.distributions.base import base_distribution
from pyrobnn.errors import ConfigError, NumericalError
from pyrobnn.guides.base import Guide
from pyrobnn.guides.function import NoLatents
from pyrobnn.guides.local import local_params
from pyrobnn.model import BayesianModel

SiteMoments = dict[str, tuple[Tensor, Tensor]]


def site_moments(model: BayesianModel, guide: Any, draws: int = 256) -> SiteMoments:
    """Posterior mean and standard deviation of each latent site, `{site: (mean, sd)}`.

    Exact where the guide's sites are independent distributions with known moments (this package's
    guides, AutoNormal on real sites, AutoDelta, most hand-written ones); else by the law of total
    variance over `draws` runs of the guide, with a seed of its own (the global RNG state is kept).
    """
    guide = find_guide(model, guide)
    refuse_nan(guide)
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


def refuse_nan(guide: Any) -> None:
    """A guide that has diverged says nothing; the checks of its distributions would say so in pages.

    Raises:
        NumericalError: a parameter is not finite; the message names it.
    """
    for name, parameter in guide.named_parameters() if isinstance(guide, nn.Module) else ():
        if not bool(parameter.isfinite().all()):
            raise NumericalError(
                f"the guide's parameter {name} holds NaN or infinity: the fit has diverged; fit again with a smaller rate"
            )


def find_guide(model: BayesianModel, guide: Any) -> Any:
    """A function that `fit` has trained stands for the module that holds its parameters."""
    return guide if isinstance(guide, nn.Module) else model.function_guides.get(guide, guide)


def run_guide(guide: Any, model: BayesianModel) -> Any:
    """The trace of one draw from a guide, without gradients; nothing else sees its sites."""
    # PyroModules are read through their own parameters, however they were trained, so that
    # nothing is written to (or taken from) a global store that another model may have used.
    scope = local_params(guide) if isinstance(guide, nn.Module) else nullcontext()
    with torch.no_grad(), scope, poutine.block():
        return poutine.trace(guide).get_trace(*model.seen)


def _moments_of_run(guide: Any, model: BayesianModel, sites: list[str]) -> SiteMoments:
    trace = run_guide(guide, model)
    found = {}
    for name in sites:
        fn = _own_law(trace.nodes, name)
        value = trace.nodes[name]["value"].detach()
        try:
            mean, variance = fn.mean.expand(value.shape), fn.variance.expand(value.shape)
        except (NotImplementedError, AttributeError):
            mean, variance = value, torch.zeros_like(value)
        found[name] = (mean.detach().float(), variance.detach().float())
    return found


def deterministic_net(model: BayesianModel, guide: Any) -> nn.Module:
    """The plain network at the posterior means, noise folded into the weights."""
    return model.deterministic({site: mean for site, (mean, _) in site_moments(model, guide).items()})


def guide_runs(model: BayesianModel, guide: Any, draws: int, seed: int) -> Iterator[Any]:
    """Traces of independent draws, one after the other, the same ones for every caller with this seed.

    The global random state is kept between and after them.
    """
    guide = find_guide(model, guide)
    for number in torch.randint(2**62, (draws,), generator=torch.Generator().manual_seed(seed)).tolist():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            trace = run_guide(guide, model)
        yield trace


def independent_normals(model: BayesianModel, guide: Any) -> set[str]:
    """Sites whose posterior is a Normal per coordinate, independent of everything else: loc and scale say all of it."""
    guide = find_guide(model, guide)
    if isinstance(guide, NoLatents):
        return set()
    first, second = (trace.nodes for trace in guide_runs(model, guide, 2, 0))
    found = set()
    for name in model.sites():
        laws = [_own_law(nodes, name) for nodes in (first, second)]
        if all(isinstance(law, torch.distributions.Normal) for law in laws):
            a, b = laws
            if torch.equal(a.loc, b.loc) and torch.equal(a.scale, b.scale):
                found.add(name)
    return found


def _own_law(nodes: Any, name: str) -> Any:
    """The distribution of a site, or of the auxiliary that it equals (AutoNormal on a real site)."""
    if name not in nodes:
        raise ConfigError(f"the guide has no site {name!r}; it must sample every latent site of the model")
    auxiliary = nodes.get(f"{name}_unconstrained")
    if auxiliary is not None and torch.equal(auxiliary["value"], nodes[name]["value"]):
        return base_distribution(auxiliary["fn"])
    return base_distribution(nodes[name]["fn"])


def site_draws(
    model: BayesianModel, guide: Any, draws: int, seed: int = 0, sites: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Draws of channel-level sites, `{site: [S, channels]}`, of filter norms where weights are random, and of `sites`.

    A weight-level posterior gives `{group}.norm`: the L2 norm of each channel's filter, one draw at a time
    (memory grows with the channels, not with the weights).
    """
    if isinstance(find_guide(model, guide), NoLatents):
        return {}
    found: dict[str, list[Tensor]] = {}
    for trace in guide_runs(model, guide, draws, seed):
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and (
                name in sites or (model.group_of_site(name) is not None and node["value"].dim() == 1)
            ):
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
