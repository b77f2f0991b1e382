"""Cuts a model, its guide and the optimiser's moments to a plan while they are trained."""

from __future__ import annotations

from typing import Any

import torch

from pyrobnn.channels import PruningPlan, compact
from pyrobnn.errors import PlanError
from pyrobnn.guides.base import Guide, LikeTensor, cut, site_layout
from pyrobnn.guides.function import NoLatents
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.inference.optimisers import laid_out_like
from pyrobnn.model import BayesianModel
from pyrobnn.priors.base import Prior
from pyrobnn.summary.reading import site_moments


def shrink(model: BayesianModel, guide: Any, plan: PruningPlan, *, copy: bool = True) -> tuple[BayesianModel, Any]:
    """The smaller (model, guide) pair; the given pair is not touched.

    The package's guides are sliced by their layout and go on where they were. A foreign guide
    (AutoGuide, function) is replaced by a mean-field guide with its summary's loc and scale.

    Args:
        model: a model built with channel groups.
        guide: its guide.
        plan: in the coordinates of `model.net`.
        copy: False cuts the network of `model` and a guide of the package in place, for a pair that is not needed any more.

    Raises:
        PlanError: the model has no channel groups, or the plan does not fit them.
    """
    if model.groups is None:
        raise PlanError("shrink needs the channel groups: build the model with groups=pb.channel_groups(net, example)")
    table = model.groups
    ours = isinstance(guide, Guide | NoLatents)  # the moments of others are read from the whole network
    net = compact(model.bare_net, plan, None, groups=table, copy=copy or not ours)
    net = model.released(net, {})  # BayesianModel expects a plain network and turns these into buffers again
    prior = model.prior.shrink(table, plan) if isinstance(model.prior, Prior) else model.prior
    small = model.with_net(net, table.after(plan), prior)
    if isinstance(guide, Guide):
        less = guide.shrink(table, plan, copy=copy)
        less.attach(small)
        return small, less
    if isinstance(guide, NoLatents):
        return small, guide
    return small, _from_summary(model, guide, small, plan)


def _from_summary(model: BayesianModel, guide: Any, small: BayesianModel, plan: PruningPlan) -> MeanField:
    moments = {}
    for site, (loc, scale) in site_moments(model, guide).items():
        layout = site_layout(model, site)
        moments[site] = tuple(cut(part, layout, model.groups, plan) for part in (loc, scale))  # type: ignore[arg-type]
    fresh = MeanField(small, init={site: loc for site, (loc, _) in moments.items()})
    for site, (loc, scale) in moments.items():
        fresh.set_scale(site, loc, scale)
    return fresh


def shrink_optimiser(
    optimiser: torch.optim.Optimizer,
    old: tuple[BayesianModel, Any],
    new: tuple[BayesianModel, Any],
    fresh: torch.optim.Optimizer,
    plan: PruningPlan,
) -> torch.optim.Optimizer:
    """Carry the moments of `optimiser` over to `fresh`, cut by the same table as the parameters."""
    table = old[0].groups
    assert table is not None
    layouts = getattr(old[1], "layout", {})
    pairs = [(old[0].net, new[0].net, None), (old[1], new[1], layouts)]
    for before, after, layout in pairs:
        target = dict(after.named_parameters())
        for name, parameter in before.named_parameters():
            state = optimiser.state.get(parameter)
            if not state or name not in target or not target[name].requires_grad:
                continue
            how = LikeTensor(name) if layout is None else layout.get(name)
            moved = {}
            for key, value in state.items():
                same = torch.is_tensor(value) and value.shape == parameter.shape
                moved[key] = cut(value, how, table, plan).clone() if same else value
            if all(not torch.is_tensor(v) or v.dim() == 0 or v.shape == target[name].shape for v in moved.values()):
                fresh.state[target[name]] = {key: laid_out_like(target[name], v) for key, v in moved.items()}
    return fresh
