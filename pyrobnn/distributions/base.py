"""The base distribution inside Pyro's wrappers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch


def base_distribution(fn: Any) -> Any:
    """The distribution inside `Independent`, masked and expanded wrappers."""
    wrappers = dist.Independent | torch.distributions.Independent | dist.MaskedDistribution | dist.ExpandedDistribution
    while isinstance(fn, wrappers):
        fn = fn.base_dist
    return fn
