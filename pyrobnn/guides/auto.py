"""Pyro's AutoGuides, started at the network's weights."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer.autoguide import AutoContinuous, AutoDelta, AutoGuide, AutoNormal
from pyro.infer.autoguide.guides import AutoNormalizingFlow
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from pyro.nn.module import PyroParam
from torch import Tensor
from torch.distributions import biject_to

from pyrobnn.errors import ConfigError

if TYPE_CHECKING:
    from pyrobnn.model import BayesianModel


def initial_loc(model: BayesianModel) -> Callable[[dict[str, Any]], Tensor]:
    """An `init_loc_fn` for AutoGuides and MCMC: trained weights, noise 1, gates open.

    Pyro's own default starts weights at the prior's median, 0: what the network has learned is lost. Values at
    the very edge of a support (noise 1 under a log-uniform prior that ends there) are moved inside by 0.1 %
    of its width.

    Args:
        model: a :class:`~pyrobnn.BayesianModel`.

    Returns:
        A function of a Pyro site, to be given as `init_loc_fn=` (or `init_strategy=` of `NUTS`).

    Raises:
        ConfigError: (by the function) a discrete site, which these guides cannot have.
    """
    start = model.initial_values()

    def value(site: dict[str, Any]) -> Tensor:
        fn, name = site["fn"], site["name"]
        _require_continuous(name, fn)
        found = start[name] if name in start else init_to_median(site)  # a site of a prior that is a function
        return _inside(found.detach(), fn.support).expand(fn.shape()).clone()

    return value


def auto(
    model: BayesianModel, kind: type[AutoGuide] = AutoNormal, *, init_scale: float = 0.1, **options: Any
) -> AutoGuide:
    """A Pyro AutoGuide that starts at the trained weights, with a scale to match.

    `AutoNormal(model)` alone starts all weights at the prior's median with one scale of 0.1, which forgets what
    the network has learned. This one starts at :func:`initial_loc`, and its standard deviations at `init_scale` times the
    root mean square of each site's start (as :class:`~pyrobnn.guides.MeanField`), in the unconstrained
    space in which AutoGuides are Gaussian. Its parameters exist at once; no batch is needed.

    Args:
        model: a :class:`~pyrobnn.BayesianModel`.
        kind: `AutoNormal`, `AutoDelta`, `AutoDiagonalNormal`, `AutoMultivariateNormal`,
            `AutoLowRankMultivariateNormal`, `AutoLaplaceApproximation`.
        init_scale: relative to each site's root mean square (of 1 where that is 0).
        options: handed to `kind` (`rank=`, …).

    Returns:
        The guide; everything of Pyro takes it.

    Raises:
        ConfigError: a kind that has no location to start at, a scale that is not positive, or a prior with discrete
            sites (which then has a continuous form, named in the message).

    Example:
        >>> import pyrobnn as pb
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3))
        >>> guide = pb.guides.auto(pb.BayesianModel(net, pb.priors.Gaussian(), data_size=10))
        >>> type(guide).__name__, bool((guide.median()["0.weight"] == net[0].weight).all())
        ('AutoNormal', True)
    """
    located = AutoDelta, AutoNormal, AutoContinuous
    if not (isinstance(kind, type) and issubclass(kind, located)) or issubclass(kind, AutoNormalizingFlow):
        raise ConfigError(
            f"pb.guides.auto starts an AutoGuide that has a location (AutoNormal, AutoDelta, AutoDiagonalNormal, "
            f"AutoLowRankMultivariateNormal, …), got {getattr(kind, '__name__', kind)!r}: make that one yourself"
        )
    if not init_scale > 0:
        raise ConfigError(f"init_scale must be positive, got {init_scale}; 0.1 suits trained weights")
    sites = model.sites()
    if not sites:
        raise ConfigError("the model has no latent site for a guide: give BayesianModel a prior")
    for name, site in sites.items():
        _require_continuous(name, site["fn"])
    where = initial_loc(model)
    guide = kind(model, init_loc_fn=where, **options)
    _set_up(guide, model, where)
    with torch.no_grad():
        guide.start_scales = _set_scales(
            guide, {name: where(site) for name, site in sites.items()}, sites, float(init_scale)
        )
    return guide


def _require_continuous(name: str, fn: Any) -> None:
    if fn.support.is_discrete:
        raise ConfigError(
            f"site {name!r} is discrete and an AutoGuide needs continuous sites: give the prior its continuous form "
            "(SpikeSlab and EdgeSpikeSlab: gates='hard-concrete'; Turbo: form='marginal') or use the guide made for it "
            "(SpikeSlabGuide, TurboGuide)"
        )


def _inside(value: Tensor, support: Any) -> Tensor:
    """The value, off the ends of an interval or of a half-line."""
    base = getattr(support, "base_constraint", support)
    low, high = getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)
    if low is None:
        return value
    margin = 1e-3 * (high - low) if high is not None else 1e-8
    value = torch.maximum(value, value.new_tensor(low + margin))
    return value if high is None else torch.minimum(value, value.new_tensor(high - margin))


def _set_up(guide: Any, model: BayesianModel, where: Any) -> None:
    """What an AutoGuide does at its first call, from the prior's sites alone: these are all its latent sites."""
    held = guide._model
    guide._model = (InitMessenger(where)(lambda: model.values()),)
    try:
        with model.frozen_statistics(), torch.no_grad():
            guide._setup_prototype()
    finally:
        guide._model = held


def _set_scales(guide: Any, start: dict[str, Tensor], sites: dict[str, Any], relative: float) -> dict[str, float]:
    """Standard deviations in unconstrained space, a share of each site's own size; returns those of real sites."""
    sizes, real = {}, {}
    for name, value in start.items():
        free = biject_to(sites[name]["fn"].support).inv(value)
        # On a transformed scale (log, logit) a step of 1 is the unit.
        same = free.shape == value.shape and torch.equal(free, value)
        size = (float(value.square().mean().sqrt()) or 1.0) if same else 1.0
        sizes[name] = torch.full_like(free, relative * size)
        if same:
            real[name] = relative * size
    if isinstance(guide, AutoNormal):
        for name, scale in sizes.items():
            *path, leaf = name.split(".")
            owner = attrgetter(".".join(path))(guide.scales) if path else guide.scales
            setattr(owner, leaf, PyroParam(scale, guide.scale_constraint, sites[name]["fn"].event_dim))
    elif isinstance(guide, AutoContinuous) and hasattr(guide, "scale_constraint"):
        scale = torch.cat([sizes[name].flatten() for name in guide._unconstrained_shapes])
        # A low-rank guide splits its variance in halves between diagonal and factors.
        guide.scale = PyroParam(scale * (0.5**0.5 if hasattr(guide, "cov_factor") else 1.0), guide.scale_constraint)
    return real
