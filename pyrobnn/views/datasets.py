"""A `Posterior` as plain xarray datasets, by ArviZ's names of groups; needs no ArviZ.

==================  ==========================================================
group               contents
==================  ==========================================================
posterior           draws ``(chain, draw, …)`` of channel-level and other small
                    sites; of weight-level sites on request
constant_data       ``<site>_loc`` and ``<site>_scale`` of every site; per channel
                    group ``<group>_channel_snr`` (or ``_inclusion``,
                    ``_magnitude``), ``_kept`` and, where known, ``_nats``,
                    ``_evidence``, ``_loc``, ``_scale``, ``_history``, and
                    ``<group>_norm_history`` where filter norms were recorded, over
                    ``<group>_original``, the channels of the original net, with
                    ``<group>_norm_round`` and the pairs of each round,
                    ``<group>_norm_pairs_<round>``;
                    ``group_channels`` and ``group_kept`` over ``group``
posterior_          predictive draws, when the posterior carries them
predictive
log_likelihood      ``y``, pointwise log-likelihood of the draws, when given
observed_data       ``y``, the labels, when given
==================  ==========================================================

What a group's channels have in common (noise, gates, local scales, filter norms)
shares one dimension, ``<group>_channel``, or ``<group>_kept`` where channels have
been cut already; both count as the original net does. Other dimensions are named
after site and axis (``<site>_filter``, ``<site>_in_channel``, ``<site>_kh``,
``<site>_out_feature``, …): xarray wants one length per name, and sites differ in
size. A slash in a name becomes a dot, since netCDF reads slashes as
groups. Draws from a guide are independent: R-hat, ESS, trace and energy plots
say nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrobnn.errors import DataError

if TYPE_CHECKING:
    from pyrobnn.summary.types import ChannelSummary, Posterior, SiteSummary

DRAWS = 100  # of weights, where a posterior has kept none at all


def datasets(
    posterior: Posterior,
    *,
    weight_draws: bool | Collection[str] = False,
    max_bytes: int | None = None,
) -> dict[str, xr.Dataset]:
    """The groups as plain xarray datasets, empty ones left out; needs no ArviZ."""
    groups = {"posterior": _draws(posterior, weight_draws), **_predictive(posterior.predictive)}
    spent = sum(dataset.nbytes for dataset in groups.values())
    constants = groups.get("constant_data", xr.Dataset())
    constants = xr.merge([constants, _channels(posterior)], combine_attrs="override")
    allowance = None if max_bytes is None else max_bytes - spent - constants.nbytes
    groups["constant_data"] = xr.merge([constants, _sites(posterior, allowance)], combine_attrs="override")
    attrs = _attrs()
    if (moved := getattr(posterior, "convergence", None)) is not None:
        figures = {"scale_change": moved.scale_change, "kl_fall": moved.kl_fall}
        attrs |= {f"convergence_{what}": value for what, value in figures.items() if value is not None}
        attrs["convergence_by_site"] = json.dumps(moved.by_site)
        attrs["convergence_at_curvature"] = int(moved.at_curvature)
        attrs["convergence"] = str(moved)
    return {name: dataset.assign_attrs(attrs) for name, dataset in groups.items() if len(dataset.data_vars)}


def _attrs() -> dict[str, Any]:
    import pyro

    return {
        "inference_library": "pyro",
        "inference_library_version": str(pyro.__version__),
        "creation_library": "pyrobnn",
        "method": "variational inference: independent draws from a guide, one chain",
    }


def _array(tensor: Tensor) -> np.ndarray:
    """NumPy view on the CPU: floats as float32, bool and integers as they are."""
    tensor = tensor.detach().cpu()
    return (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).numpy()


def _clean(name: str) -> str:
    return name.replace("/", ".")


def _channel_dim(group: str, n: int, channel: ChannelSummary | None) -> str | None:
    """The dimension of what a group has one value per channel of; None for another length."""
    if channel is None or n == len(channel.kept):
        return f"{_clean(group)}_channel"
    return f"{_clean(group)}_kept" if n == int(channel.kept.sum()) else None


def _dims(site: SiteSummary, posterior: Posterior) -> tuple[str, ...]:
    if site.group is not None and site.kind == "channel":
        shared = _channel_dim(site.group, len(site.loc), posterior.channels.get(site.group))
        if shared is not None:
            return (shared,)
    known = site.dims if len(site.dims) == site.loc.ndim else [f"dim_{i}" for i in range(site.loc.ndim)]
    return tuple(f"{_clean(site.name)}_{dim}" for dim in known)


def _coords(site: SiteSummary, posterior: Posterior) -> dict[str, np.ndarray]:
    """Index of every axis; a site that lost channels counts them as the original net does."""
    coords = {dim: np.arange(n) for dim, n in zip(_dims(site, posterior), site.loc.shape, strict=True)}
    channel = posterior.channels.get(site.group or site.name.removesuffix(".weight"))
    if channel is not None and site.loc.ndim:
        coords[_dims(site, posterior)[0]] = _original(site.loc.shape[0], channel)
    return coords


def _original(n: int, channel: ChannelSummary) -> np.ndarray:
    """Numbers that the n channels of a perhaps already cut site had in the original net."""
    kept = channel.kept.detach().cpu()
    return kept.nonzero().flatten().numpy() if n == int(kept.sum()) else np.arange(n)


def _site_attrs(site: SiteSummary) -> dict[str, Any]:
    independent = int(getattr(site, "independent", False))
    return {"site": site.name, "kind": site.kind, "group": site.group or "", "independent": independent}


def _made(posterior: Posterior, weight_draws: bool | Collection[str]) -> dict[str, Tensor]:
    """Draws of weight-level sites that were asked for and not kept, from loc and scale."""
    if weight_draws is True:
        asked = [site.name for site in posterior.sites.values() if site.kind == "weight"]
    else:
        asked = list(weight_draws or ())
    count = next((len(value) for value in posterior.draws.values()), DRAWS)
    made = {}
    for name in asked:
        site = posterior.sites.get(name)
        if name in posterior.draws:
            continue
        if site is None or not getattr(site, "independent", False):
            raise DataError(
                f"expected draws of {name!r}, got draws of {sorted(posterior.draws) or 'no site'}; summarize again "
                f"with sites=[{name!r}]"
            )
        own = torch.Generator().manual_seed(crc32(name.encode()))  # the same alone as among others
        noise = torch.randn(count, *site.loc.shape, generator=own)
        made[name] = torch.addcmul(site.loc, noise, site.scale)
    return made


def _draws(posterior: Posterior, weight_draws: bool | Collection[str]) -> xr.Dataset:
    kept = {**posterior.draws, **_made(posterior, weight_draws)}
    wanted = set(kept) if weight_draws is True else set(weight_draws or ())
    variables, coords = {}, {}
    for name, draws in kept.items():
        site = posterior.sites.get(name)
        if site is not None and site.kind == "weight" and name not in wanted:
            continue
        if site is not None and site.loc.shape == draws.shape[1:]:
            dims, attrs = _dims(site, posterior), _site_attrs(site)
            coords.update(_coords(site, posterior))
        else:
            # A quantity derived from a group's weights, such as the norm of its filters.
            channel = posterior.channels.get(name.rpartition(".")[0]) if draws.ndim == 2 else None
            dims = tuple(f"{_clean(name)}_dim_{i}" for i in range(draws.ndim - 1))
            attrs = {"site": name}
            if channel is not None:
                dims = (_channel_dim(channel.group, draws.shape[1], channel) or f"{_clean(name)}_channel",)
                coords[dims[0]] = _original(draws.shape[1], channel)
        variables[_clean(name)] = (("chain", "draw", *dims), _array(draws)[None], attrs)
    counts = {name: values[1].shape[1] for name, values in variables.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"expected one number of draws for all sites, got {counts}; draw every site in one go")
    if counts:
        coords |= {"chain": np.arange(1), "draw": np.arange(next(iter(counts.values())))}
    return xr.Dataset(variables, coords=coords)


def _sites(posterior: Posterior, allowance: int | None) -> xr.Dataset:
    sites = list(posterior.sites.values())
    reduced = set(_too_large(sites, allowance))
    variables, coords = {}, {}
    for site in sites:
        name, dims = _clean(site.name), _dims(site, posterior)
        own_coords, attrs = _coords(site, posterior), _site_attrs(site)
        for what, value in (("loc", site.loc), ("scale", site.scale)):
            if site.name in reduced:
                per_filter = value.float().flatten(1).square().mean(1).sqrt()
                variables[f"{name}_{what}_rms"] = (dims[:1], _array(per_filter), attrs)
                coords[dims[0]] = own_coords[dims[0]]
            else:
                variables[f"{name}_{what}"] = (dims, _array(value), attrs)
                coords.update(own_coords)
    return xr.Dataset(variables, coords=coords)


def _too_large(sites: Iterable[SiteSummary], allowance: int | None) -> list[str]:
    """Names of the weight-level sites, largest first, that must shrink to fit."""
    if allowance is None:
        return []
    size = {site.name: 8 * site.loc.numel() for site in sites}  # loc and scale, 4 bytes each
    total, names = sum(size.values()), []
    weights = [site for site in sites if site.kind == "weight" and site.loc.ndim > 1]
    for site in sorted(weights, key=lambda s: -size[s.name]):
        if total <= allowance:
            break
        total -= size[site.name] - 8 * site.loc.shape[0]
        names.append(site.name)
    return names


def _channels(posterior: Posterior) -> xr.Dataset:
    if not posterior.channels:
        return xr.Dataset()
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    for group, channel in posterior.channels.items():
        name, n = _clean(group), len(channel.kept)
        dim = f"{name}_original"
        coords[dim] = np.arange(n)
        attrs: dict[str, Any] = {
            "group": group, "statistic": channel.statistic, "unit": getattr(channel, "unit", "nats"), "round": int(channel.round)
        }  # fmt: skip
        if channel.threshold is not None:
            attrs["threshold"] = float(channel.threshold)
        columns = {
            channel.statistic: channel.snr,
            "nats": channel.nats,
            "evidence": channel.evidence,
            "kept": channel.kept,
            "loc": channel.loc,
            "scale": channel.scale,
            "ranking": getattr(channel, "ranking", None),
        }
        for what, value in columns.items():
            if value is not None:
                variables[f"{name}_channel_{what}"] = ((dim,), _array(value), attrs)
        history = _history(posterior.history, group, n)
        if history is not None:
            variables[f"{name}_channel_history"] = (("epoch", dim), history, attrs)
        norms = _norm_history(posterior.trajectories, group, n)
        if norms is not None:
            variables[f"{name}_norm_history"] = (("record", dim), norms, attrs)
            entries = {k: entry[group] for k, entry in enumerate(posterior.trajectories) if group in entry}
            rounds = [np.full(len(entry["norms"]), k) for k, entry in entries.items()]
            variables[f"{name}_norm_round"] = (("record",), np.concatenate(rounds))
            for k, entry in entries.items():
                pairs = _array(entry["pairs"])
                variables[f"{name}_norm_pairs_{k}"] = ((f"{name}_pair_{k}", "goes_stays"), pairs)
    channels: Iterable[ChannelSummary] = posterior.channels.values()
    variables["group_channels"] = (("group",), np.array([len(c.kept) for c in channels]))
    variables["group_kept"] = (("group",), np.array([int(c.kept.sum()) for c in channels]))
    return xr.Dataset(variables, coords=coords | {"group": [_clean(g) for g in posterior.channels]})


def _history(history: list[dict[str, Tensor]], group: str, channels: int) -> np.ndarray | None:
    """``[epochs, channels]``; NaN in epochs that did not record all original channels."""
    rows = [epoch.get(group) for epoch in history]
    complete = [row is not None and row.shape == (channels,) for row in rows]
    if not any(complete):
        return None
    table = np.full((len(rows), channels), np.nan, np.float32)
    for i, row in enumerate(rows):
        if complete[i] and row is not None:
            table[i] = _array(row)
    return table


def _norm_history(trajectories: list[dict[str, dict[str, Tensor]]], group: str, channels: int) -> np.ndarray | None:
    """``[records of all rounds, channels]``; NaN where a filter had been cut."""
    tables = []
    for entry in trajectories:
        if group in entry:
            norms = _array(entry[group]["norms"])
            table = np.full((len(norms), channels), np.nan, np.float32)
            table[:, _array(entry[group]["units"]).astype(int)] = norms
            tables.append(table)
    return np.concatenate(tables) if tables else None


def _predictive(predictive: dict[str, Any] | None) -> dict[str, xr.Dataset]:
    """Groups made from a predictive dictionary.

    Keys: ``log_likelihood`` ``[S, N]``; ``observed`` ``[N, ...]``; ``y`` ``[S, N]`` and
    any three-axis entry such as ``probs`` ``[S, N, K]`` are draws; what is left is
    a statistic ``[N]`` or ``[N, K]`` per example (mean probabilities, entropies, …).
    """
    found: dict[str, dict[str, Any]] = {}
    for key, raw in (predictive or {}).items():
        value = _array(torch.as_tensor(raw))
        tail = ("example", "class")
        if key == "observed":
            rest = (f"target_{axis}" for axis in range(value.ndim - 1))
            found.setdefault("observed_data", {})["y"] = (("example", *rest), value)
        elif key == "log_likelihood":
            found.setdefault("log_likelihood", {})["y"] = (("chain", "draw", *tail[:1]), value[None])
        elif key == "y" or value.ndim == 3:
            dims = ("chain", "draw", *tail[: value.ndim - 1])
            found.setdefault("posterior_predictive", {})[_clean(key)] = (dims, value[None])
        else:
            found.setdefault("constant_data", {})[f"predictive_{_clean(key)}"] = (tail[: value.ndim], value)
    result = {}
    for group, variables in found.items():
        dataset = xr.Dataset(variables)
        result[group] = dataset.assign_coords({str(d): np.arange(n) for d, n in dataset.sizes.items()})
    return result
