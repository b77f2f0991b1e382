"""Reads a `Posterior` from a netCDF file that :func:`~pyrobnn.views.netcdf.save_netcdf` wrote."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrobnn.errors import CheckpointError
from pyrobnn.summary.types import ChannelSummary, Convergence, Posterior, SiteSummary

GROUPS = ("posterior", "constant_data", "posterior_predictive", "log_likelihood", "observed_data")
COLUMNS = ("nats", "evidence", "loc", "scale", "ranking")


def read_posterior(data: bytes, where: Any) -> Posterior:
    """The posterior in the bytes of a file.

    All that was written comes back, floats as float32. What the file does not hold is missing: weight-level sites that
    were too large and so stored as root mean squares, and draws of weight-level sites unless they were asked for.

    Args:
        data: content of the file.
        where: its path, for messages.

    Raises:
        CheckpointError: no such file.
    """
    groups = {name: _group(data, name) for name in GROUPS}
    try:
        constants = groups["constant_data"]
        posterior = Posterior(_sites(constants), _channels(constants), _draws(groups["posterior"]))
        posterior.history = _history(constants)
        posterior.trajectories = _trajectories(constants)
        posterior.predictive = _predictive(groups)
        posterior.convergence = _convergence(constants.attrs)
        posterior.net_widths = {n: (len(c.kept), int(c.kept.sum())) for n, c in posterior.channels.items()}
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{where} holds no posterior of pyrobnn ({error}): copy the file again") from error
    if not any(groups.values()):
        raise CheckpointError(f"{where} is no netCDF file of pyrobnn: copy it again")
    return posterior


def _group(data: bytes, name: str) -> xr.Dataset:
    try:
        with xr.open_dataset(io.BytesIO(data), engine="h5netcdf", group=name) as dataset:
            return dataset.load()
    except (OSError, ValueError, KeyError):
        return xr.Dataset()


def _tensor(values: xr.DataArray) -> Tensor:
    return torch.from_numpy(np.array(values.values))


def _sites(constants: xr.Dataset) -> dict[str, SiteSummary]:
    found = {}
    for key, loc in constants.data_vars.items():
        name, attrs = str(key).removesuffix("_loc"), loc.attrs
        if "site" not in attrs or name == key:
            continue
        dims = tuple(str(dim).removeprefix(f"{name}_") for dim in loc.dims)
        if attrs["kind"] == "channel" and loc.ndim == 1:  # a dimension of the group's, whatever the site
            dims = ("channel",)
        scale = constants[f"{name}_scale"]
        found[attrs["site"]] = SiteSummary(
            attrs["site"],
            _tensor(loc),
            _tensor(scale),
            dims,
            attrs["kind"],
            attrs["group"] or None,
            bool(attrs.get("independent", 0)),
        )
    return found


def _convergence(attrs: dict[str, Any]) -> Convergence | None:
    scale, fall = attrs.get("convergence_scale_change"), attrs.get("convergence_kl_fall")
    if scale is None and fall is None:
        return None
    return Convergence(
        None if scale is None else float(scale),
        json.loads(attrs.get("convergence_by_site", "{}")),
        None if fall is None else float(fall),
        bool(attrs.get("convergence_at_curvature", 0)),
    )


def _names(constants: xr.Dataset) -> dict[str, str]:
    """Channel groups by the name that their variables begin with."""
    kept = {str(key): value for key, value in constants.data_vars.items() if str(key).endswith("_channel_kept")}
    return {key.removesuffix("_channel_kept"): value.attrs["group"] for key, value in kept.items()}


def _channels(constants: xr.Dataset) -> dict[str, ChannelSummary]:
    found = {}
    for short, group in _names(constants).items():
        kept = constants[f"{short}_channel_kept"]
        attrs = kept.attrs
        columns = {
            what: _tensor(constants[f"{short}_channel_{what}"])
            for what in COLUMNS
            if f"{short}_channel_{what}" in constants
        }
        threshold = attrs.get("threshold")
        found[group] = ChannelSummary(
            group=group,
            snr=_tensor(constants[f"{short}_channel_{attrs['statistic']}"]),
            statistic=str(attrs["statistic"]),
            kept=_tensor(kept).bool(),
            threshold=None if threshold is None else float(threshold),
            round=int(attrs["round"]),
            unit=str(attrs.get("unit", "nats")),
            **columns,
        )
    return found


def _draws(draws: xr.Dataset) -> dict[str, Tensor]:
    return {values.attrs["site"]: _tensor(values)[0] for values in draws.data_vars.values()}


def _history(constants: xr.Dataset) -> list[dict[str, Tensor]]:
    rows: list[dict[str, Tensor]] = []
    for short, group in _names(constants).items():
        if f"{short}_channel_history" not in constants:
            continue
        table = _tensor(constants[f"{short}_channel_history"])
        rows += [{} for _ in range(len(table) - len(rows))]
        for row, record in zip(rows, table, strict=False):
            if not bool(record.isnan().all()):  # an epoch that did not record this group
                row[group] = record
    return rows


def _trajectories(constants: xr.Dataset) -> list[dict[str, dict[str, Tensor]]]:
    found: list[dict[str, dict[str, Tensor]]] = []
    for short, group in _names(constants).items():
        if f"{short}_norm_round" not in constants:
            continue
        table, rounds = _tensor(constants[f"{short}_norm_history"]), _tensor(constants[f"{short}_norm_round"])
        for number in rounds.unique().tolist():
            norms = table[rounds == number]
            units = (~norms.isnan().any(0)).nonzero().flatten()
            found += [{} for _ in range(number + 1 - len(found))]
            pairs = _tensor(constants[f"{short}_norm_pairs_{number}"])
            found[number][group] = {"norms": norms[:, units], "pairs": pairs, "units": units}
    return found


def _predictive(groups: dict[str, xr.Dataset]) -> dict[str, Tensor] | None:
    found = {str(key): _tensor(value)[0] for key, value in groups["posterior_predictive"].data_vars.items()}
    if "y" in groups["log_likelihood"]:
        found["log_likelihood"] = _tensor(groups["log_likelihood"]["y"])[0]
    if "y" in groups["observed_data"]:
        found["observed"] = _tensor(groups["observed_data"]["y"])
    prefix = "predictive_"
    for key, value in groups["constant_data"].data_vars.items():
        if str(key).startswith(prefix):
            found[str(key).removeprefix(prefix)] = _tensor(value)
    return found or None
