"""Writes a `Posterior` to a netCDF file."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from pyrobnn.io.files import write_bytes
from pyrobnn.views.datasets import datasets

if TYPE_CHECKING:
    from pyrobnn.summary.types import Posterior

MAX_BYTES = 190_000_000


def save_netcdf(
    posterior: Posterior,
    path: str | os.PathLike[str],
    *,
    weight_draws: bool | Collection[str] = False,
    max_bytes: int | None = MAX_BYTES,
) -> Path:
    """Writes the posterior to a netCDF file that plain ``arviz.from_netcdf`` opens.

    The file is written beside its place and moved there when complete, so a
    reader never sees half of it.

    Args:
        posterior: what `pyrobnn.summarize` returns.
        path: the file; missing folders are made.
        weight_draws: as for `to_arviz`.
        max_bytes: where the file would be larger, the largest weight-level sites
            are stored as one root mean square of loc and scale per filter
            (``<site>_loc_rms``, ``<site>_scale_rms``). None: no limit. Draws are
            never left out.

    Returns:
        The path written.
    """
    groups = datasets(posterior, weight_draws=weight_draws, max_bytes=max_bytes)
    encoding = {
        f"/{group}": {name: {"zlib": True} for name, value in dataset.variables.items() if value.dtype.kind in "biuf"}
        for group, dataset in groups.items()
    }
    # In memory: HDF5 answers a full disk with a crash.
    content = xr.DataTree.from_dict(groups).to_netcdf(engine="h5netcdf", encoding=encoding)
    return write_bytes(path, content)
