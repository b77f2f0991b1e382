"""Pareto k-hat of a guide's importance weights on a few sites: how well the guide fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrobnn.data import Split
from pyrobnn.distributions.base import base_distribution
from pyrobnn.errors import ConfigError
from pyrobnn.likelihoods import as_observed
from pyrobnn.model import BayesianModel
from pyrobnn.nets.calling import eval_mode
from pyrobnn.summary.reading import find_guide, run_guide, site_moments
from pyrobnn.views.arviz import pareto_khat


@dataclass(frozen=True)
class GuideCheck:
    """What :func:`guide_khat` found.

    Attributes:
        khat: shape of the Pareto tail of the weights. Below 0.7 the guide can be corrected by
            reweighting; above 1 its draws have weights without a mean. -inf: all weights equal, the
            guide is exact.
        log_ratio: log p(z, D) - log q(z) per draw, `[S]`, nats.
        dimensions: number of coordinates that were drawn; k-hat grows with it.
    """

    khat: float
    log_ratio: Tensor
    dimensions: int


@torch.no_grad()
def guide_khat(
    model: BayesianModel,
    guide: Any,
    data: Split | Sequence[tuple[Tensor, Tensor]],
    sites: str | Sequence[str],
    *,
    draws: int = 500,
    seed: int = 0,
    batch_size: int = 500,
) -> GuideCheck:
    """Pareto k-hat of log p(z, D) - log q(z) over draws z of some sites (Yao et al. 2018, algorithm 1).

    All other sites are held at their posterior means, so this checks the guide of these sites *given* the
    rest: the gates, say, or the last layer. Over all weights k-hat is always bad and says nothing. Every
    draw takes a pass over the data.

    Args:
        model, guide: a fitted pair, whose KL weight was 1 (a cold posterior is not an approximation of p).
        data: the training data, all of it: a split, or batches `(x, y)`. Log-likelihoods are summed over
            them and not rescaled.
        sites: names or patterns of the sites to draw, such as `"*.noise"` or `"fc2.weight"`. They must be
            independent of other sites in guide and prior, as in mean-field guides.
        draws: S; the estimate has a standard error of about 0.1 at 500.
        seed: of the draws; the global RNG state is kept.
        batch_size: images per forward pass, with a split.

    Raises:
        ConfigError: no site matches, or fewer than 25 draws.
    """
    if draws < 25:
        raise ConfigError(f"k-hat needs at least 25 draws to have a tail, got {draws}; 500 is usual")
    guide = find_guide(model, guide)
    means = {name: mean for name, (mean, _) in site_moments(model, guide).items()}
    patterns = [sites] if isinstance(sites, str) else list(sites)
    chosen = [name for name in means if any(fnmatch(name, pattern) for pattern in patterns)]
    if not chosen:
        raise ConfigError(f"no site matches {sites!r}; the model has {', '.join(means)}")
    device = means[chosen[0]].device
    ratios = []
    seeds = torch.randint(2**62, (draws,), generator=torch.Generator().manual_seed(seed))
    with eval_mode(model.net), torch.random.fork_rng(devices=[]), poutine.block():
        for number in seeds.tolist():
            torch.manual_seed(number)
            drawn = run_guide(guide, model)
            values = {name: drawn.nodes[name]["value"] if name in chosen else mean for name, mean in means.items()}
            trace: Any = poutine.trace(poutine.condition(model.values, data=values)).get_trace()
            ratio = sum((_log_prob(trace.nodes[name]) - _guide_log_prob(drawn, name) for name in chosen), 0.0)
            for latent in _joint(drawn, means):
                if len(chosen) < len(means):
                    raise ConfigError(
                        f"the guide has one density for all sites ({latent}): check all of them together, sites='*'"
                    )
                ratio -= _log_prob(drawn.nodes[latent])
            tensors = trace.nodes["_RETURN"]["value"]
            batches = data.batches(batch_size) if isinstance(data, Split) else data
            for x, y in batches:
                targets = model.density(model.call_net(model.net, tensors, x.to(device), whole=True))
                ratio += float(targets.log_prob(as_observed(targets, y.to(device))).sum())
            ratios.append(ratio)
    log_ratio = torch.tensor(ratios, dtype=torch.float64)
    return GuideCheck(pareto_khat(log_ratio), log_ratio, sum(means[name].numel() for name in chosen))


def _log_prob(node: dict[str, Any]) -> float:
    return float(node["fn"].log_prob(node["value"]).double().sum())


def _joint(trace: Any, means: Mapping[str, Tensor]) -> list[str]:
    """Latents that stand for several sites, as in AutoDiagonalNormal; the Deltas of the sites have the Jacobian."""
    own = {*means, *(f"{name}_unconstrained" for name in means)}
    return [name for name in trace.stochastic_nodes if name not in own]


def _guide_log_prob(trace: Any, name: str) -> float:
    """log q of one site; an AutoGuide's Delta holds the Jacobian, its auxiliary site the density."""
    auxiliary = trace.nodes.get(f"{name}_unconstrained")
    total = _log_prob(trace.nodes[name])
    if auxiliary is not None and isinstance(base_distribution(trace.nodes[name]["fn"]), dist.Delta):
        total += _log_prob(auxiliary)
    return total
