"""Convergence of a posterior: how far it has moved since its start, and whether it still moves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrobnn.errors import PyrobnnError
from pyrobnn.model import BayesianModel
from pyrobnn.nets.calling import eval_mode
from pyrobnn.summary.reading import find_guide
from pyrobnn.summary.types import Convergence


def convergence(model: BayesianModel, guide: Any, scales: Mapping[str, Tensor]) -> Convergence | None:
    """What is known of the way so far: the KL by epoch where `fit` has kept it, and the start of the scales.

    Args:
        model: whose `history` `fit` has filled; empty under stock SVI.
        guide: a guide that knows its start (this package's, `pb.guides.auto`, AutoGuides with an `init_scale`).
        scales: standard deviations of all sites now.

    Returns:
        None where neither is known.
    """
    guide = find_guide(model, guide)
    start = _start(guide, scales)
    moved = {site: abs(_log_median(scales[site]) - math.log(before)) for site, before in start.items()}
    rate = kl_fall([float(row["kl"]) for row in model.history if "kl" in row])
    if not moved and rate is None:
        return None
    size = {site: scales[site].numel() for site in moved}
    total = sum(size.values())
    change = sum(moved[site] * size[site] for site in moved) / total if total else None
    return Convergence(change, moved, rate, getattr(guide, "at_curvature", False))


def kl_fall(kl: Sequence[float]) -> float | None:
    """Share of the KL that is lost per epoch, on average over the last quarter; None with fewer than two epochs.

    >>> round(kl_fall([100.0, 80.0, 64.0, 64.0]), 3)
    0.0
    """
    if len(kl) < 2 or not kl[-1] > 0:
        return None
    span = max(1, len(kl) // 4)
    before = kl[-1 - span]
    return 1 - (kl[-1] / before) ** (1 / span) if before > 0 else None


def _start(guide: Any, scales: Mapping[str, Tensor]) -> dict[str, float]:
    """Median standard deviations at the start, by site, of those that have any width."""
    start = getattr(guide, "start_scales", None)
    if start is None and isinstance(alike := getattr(guide, "_init_scale", None), float):
        start = dict.fromkeys(scales, alike)  # a stock AutoGuide
    found = start or {}
    return {
        site: found[site] for site, scale in scales.items() if found.get(site, 0.0) > 0 and float(scale.median()) > 0
    }


def _log_median(scale: Tensor) -> float:
    return math.log(float(scale.median()))


def warn_at_chance(model: BayesianModel, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Say so if the posterior mean has lost what the network knew: an AutoGuide that started at the prior, say.

    Looks at the last batch that the model has seen with class labels.
    """
    if model.last_batch is None:
        return
    x, y = model.last_batch
    if y.dim() != 1 or y.is_floating_point() or len(y) < 16:
        return
    common = float(y.bincount().max()) / len(y)
    try:
        now = _accuracy(model, {site: mean for site, (mean, _) in moments.items()}, x, y)
        # A step of chance in a batch of this size is no knowledge either.
        if now is None or now > common + 1 / math.sqrt(len(y)):
            return
        first = _accuracy(model, model.initial_values(), x, y)
    except PyrobnnError:  # a network that was cut since takes no such values
        return
    if first is not None and first > 2 * max(common, now):
        warnings.warn(
            f"the posterior mean classifies {now:.0%} of the last batch, no better than chance ({common:.0%}), where the "
            f"network that the model was built with has {first:.0%}: the guide has lost its start. Make an AutoGuide "
            "with pb.guides.auto(model, AutoNormal), or lower the learning rate or the KL weight",
            UserWarning,
            stacklevel=3,
        )


def _accuracy(model: BayesianModel, values: Mapping[str, Tensor], x: Any, y: Tensor) -> float | None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), poutine.block(), eval_mode(model.net):
        tensors = poutine.condition(model.values, data=dict(values))()
        output = model.call_net(model.net, tensors, x)
    if not isinstance(output, Tensor) or output.dim() != 2:
        return None
    return float((output.argmax(1) == y).float().mean())
