"""Converts a `Posterior` to ArviZ.

The only file that knows ArviZ versions. ArviZ 0.2x (Python 3.11) plots an
``InferenceData``, ArviZ 1.x (Python 3.12 and later) an ``xarray.DataTree``; both
hold the same xarray datasets, which :mod:`pyrobnn.views.datasets` builds without either.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from torch import Tensor

from pyrobnn.views.datasets import datasets
from pyrobnn.views.netcdf import save_netcdf

if TYPE_CHECKING:
    from pyrobnn.summary.types import Posterior

__all__ = ["datasets", "import_arviz", "pareto_khat", "save_netcdf", "to_arviz"]


def import_arviz() -> Any:
    """The installed ``arviz``, without the yearly notice that 0.23 raises on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def pareto_khat(log_weights: Tensor) -> float:
    """Shape of the generalised Pareto distribution fitted to the tail of importance weights (PSIS).

    Args:
        log_weights: `[S]`, unnormalised; draws are taken to be independent.

    Returns:
        k-hat; -inf where all weights are equal and there is no tail to fit.
    """
    values = log_weights.detach().cpu().double().numpy()
    if np.ptp(values) < 1e-9:
        return -np.inf
    az = import_arviz()
    if hasattr(az, "psislw"):
        return float(az.psislw(values.copy())[1])
    from arviz_stats.base import array_stats  # ArviZ 1.x

    return float(array_stats.psislw(_psis_sign() * values)[1])


@cache
def _psis_sign() -> float:
    """ArviZ 1.3 takes the log likelihood, whose negative is the log weight, where others take the log weight: +1 or -1."""
    from arviz_stats.base import array_stats

    uniform = (np.arange(1000) + 0.5) / 1000
    return 1.0 if float(array_stats.psislw(-0.9 * np.log(uniform))[1]) > 0.5 else -1.0


def to_arviz(posterior: Posterior, *, weight_draws: bool | Collection[str] = False) -> Any:
    """The posterior as the container that the installed ArviZ plots.

    Args:
        posterior: what `pyrobnn.summarize` returns.
        weight_draws: also take the draws of weight-level sites: all of them
            (True) or those named. They need draws × weights × 4 bytes. Draws that
            `summarize(..., sites=...)` has not kept are made from loc and scale
            where the posterior is an independent Normal.

    Returns:
        ``arviz.InferenceData`` (ArviZ 0.2x) or ``xarray.DataTree`` (1.x); see the
        table of groups in :mod:`pyrobnn.views.datasets`. Floats are float32.

    Raises:
        DataError: sites with different numbers of draws, or a site in
            `weight_draws` of which draws are neither kept nor can be made.
    """
    return _container(datasets(posterior, weight_draws=weight_draws))


def _container(groups: dict[str, xr.Dataset]) -> Any:
    az = import_arviz()
    if int(az.__version__.split(".")[0]) >= 1:
        return xr.DataTree.from_dict(groups)
    return az.InferenceData(**groups)
