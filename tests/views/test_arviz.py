"""The ArviZ adapter, by round trips through the installed ArviZ."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from pyrobnn.errors import DataError
from pyrobnn.views import arviz as adapter


@dataclass
class Site:
    name: str
    loc: Tensor
    scale: Tensor
    dims: tuple[str, ...]
    kind: str
    group: str | None = None


@dataclass
class Channel:
    group: str
    loc: Tensor | None
    scale: Tensor | None
    snr: Tensor
    statistic: str
    kept: Tensor
    threshold: float | None = 1.0
    round: int = 0
    evidence: Tensor | None = None

    @property
    def nats(self) -> Tensor:
        return 0.5 * self.snr.square()


@dataclass
class FakePosterior:
    """The attributes of `Posterior` that the adapter reads."""

    sites: dict[str, Site] = field(default_factory=dict)
    channels: dict[str, Channel] = field(default_factory=dict)
    draws: dict[str, Tensor] = field(default_factory=dict)
    predictive: dict[str, Any] | None = None
    history: list[dict[str, Tensor]] = field(default_factory=list)
    net_widths: dict[str, int] = field(default_factory=dict)
    trajectories: list[dict[str, dict[str, Tensor]]] = field(default_factory=list)


WEIGHT_DIMS = ("filter", "in_channel", "kh", "kw")


def example(draws: int = 50) -> FakePosterior:
    g = torch.Generator().manual_seed(0)
    kept = torch.tensor([True, False, True, True, False, True])
    inclusion, whole = torch.rand(4, generator=g), torch.ones(4).bool()
    loc, scale = torch.randn(6, generator=g), torch.rand(6, generator=g) + 0.1
    w_loc, w_scale = torch.randn(6, 3, 5, 5, generator=g), torch.rand(6, 3, 5, 5, generator=g)
    return FakePosterior(
        sites={
            "conv1": Site("conv1", loc, scale, ("channel",), "channel", "conv1"),
            # cut already: the four survivors of six
            "conv1.gate": Site("conv1.gate", loc[kept], scale[kept], ("channel",), "channel", "conv1"),
            "conv1.weight": Site("conv1.weight", w_loc, w_scale, WEIGHT_DIMS, "weight"),
            "prior/scale": Site("prior/scale", torch.tensor(0.3), torch.tensor(0.1), (), "other"),
        },
        channels={
            "conv1": Channel("conv1", loc, scale, loc.abs() / scale, "snr", kept),
            "fc": Channel("fc", None, None, inclusion, "inclusion", whole, None, 2),
        },
        draws={
            "conv1": loc + scale * torch.randn(draws, 6, generator=g),
            "conv1.gate": torch.randn(draws, 4, generator=g).double(),
            "conv1.norm": torch.rand(draws, 4, generator=g),
            "conv1.weight": torch.randn(draws, 6, 3, 5, 5, generator=g).bfloat16(),
            "prior/scale": torch.rand(draws, generator=g),
        },
        predictive={
            "log_likelihood": -torch.rand(draws, 20, generator=g),
            "observed": torch.arange(20) % 3,
            "probs": torch.rand(draws, 20, 3, generator=g).softmax(-1),
            "y": torch.randint(0, 3, (draws, 20), generator=g),
            "entropy": torch.rand(20, generator=g),
            "mean_probs": torch.rand(20, 3, generator=g),
        },
        history=[{"conv1": torch.rand(6, generator=g)}, {"conv1": torch.rand(4, generator=g)}, {}],
    )


def dataset(container: Any, group: str) -> xr.Dataset:
    """One group of either container."""
    found = container[group]
    return found.to_dataset() if hasattr(found, "to_dataset") and not isinstance(found, xr.Dataset) else found


def test_groups_names_and_dimensions() -> None:
    tree = adapter.to_arviz(example())
    draws = dataset(tree, "posterior")
    # no draws of weights unasked
    assert set(draws.data_vars) == {"conv1", "conv1.gate", "conv1.norm", "prior.scale"}
    assert draws["conv1"].dims == ("chain", "draw", "conv1_channel")
    assert draws["conv1"].shape == (1, 50, 6)
    assert {v.dtype for v in draws.data_vars.values()} == {np.dtype("float32")}
    assert draws["prior.scale"].attrs["site"] == "prior/scale"
    constants = dataset(tree, "constant_data")
    assert constants["conv1.weight_loc"].dims == tuple(f"conv1.weight_{d}" for d in WEIGHT_DIMS)
    assert constants["conv1.weight_loc"].attrs["kind"] == "weight"
    assert constants["conv1_channel_snr"].attrs["threshold"] == 1.0
    assert "threshold" not in constants["fc_channel_inclusion"].attrs
    assert constants["fc_channel_inclusion"].attrs["round"] == 2
    assert "fc_channel_loc" not in constants
    assert constants["group_kept"].sel(group="conv1") == 4
    assert constants["group_channels"].sel(group="fc") == 4


def test_cut_sites_keep_the_numbers_of_the_original_channels() -> None:
    tree = adapter.to_arviz(example())
    draws = dataset(tree, "posterior")
    assert draws["conv1.gate"].dims == draws["conv1.norm"].dims == ("chain", "draw", "conv1_kept")
    assert draws["conv1_kept"].values.tolist() == [0, 2, 3, 5]
    assert draws["conv1_channel"].values.tolist() == list(range(6))
    kept = dataset(tree, "constant_data")["conv1_channel_kept"]
    assert kept["conv1_original"].values[kept.values].tolist() == [0, 2, 3, 5]


def test_snr_can_be_recomputed_from_the_constants() -> None:
    posterior = example()
    constants = dataset(adapter.to_arviz(posterior), "constant_data")
    snr = abs(constants["conv1_loc"]) / constants["conv1_scale"]
    np.testing.assert_allclose(snr.values, posterior.channels["conv1"].snr.numpy(), rtol=1e-6)
    np.testing.assert_allclose(constants["conv1_channel_nats"].values, snr.values**2 / 2, rtol=1e-6)


def test_predictive_entries_go_where_arviz_looks_for_them() -> None:
    posterior = example()
    tree = adapter.to_arviz(posterior)
    assert posterior.predictive is not None
    assert dataset(tree, "log_likelihood")["y"].dims == ("chain", "draw", "example")
    assert dataset(tree, "observed_data")["y"].values.tolist() == posterior.predictive["observed"].tolist()
    assert dataset(tree, "posterior_predictive")["probs"].dims == ("chain", "draw", "example", "class")
    assert dataset(tree, "posterior_predictive")["y"].shape == (1, 50, 20)
    constants = dataset(tree, "constant_data")
    assert constants["predictive_entropy"].dims == ("example",)
    assert constants["predictive_mean_probs"].dims == ("example", "class")


def test_history_is_nan_where_channels_were_missing() -> None:
    posterior = example()
    table = dataset(adapter.to_arviz(posterior), "constant_data")["conv1_channel_history"].values
    np.testing.assert_array_equal(table[0], posterior.history[0]["conv1"].numpy())
    assert table.shape == (3, 6) and np.isnan(table[1:]).all()


def test_weight_draws_on_request() -> None:
    posterior = example()
    everything = dataset(adapter.to_arviz(posterior, weight_draws=True), "posterior")
    named = dataset(adapter.to_arviz(posterior, weight_draws=["conv1.weight"]), "posterior")
    for draws in (everything, named):
        assert draws["conv1.weight"].shape == (1, 50, 6, 3, 5, 5)
        expected = posterior.draws["conv1.weight"].float().numpy()
        np.testing.assert_array_equal(draws["conv1.weight"].values[0], expected)
    with pytest.raises(DataError, match="conv9"):
        adapter.to_arviz(posterior, weight_draws=["conv9.weight"])


def test_sites_with_different_numbers_of_draws_are_refused() -> None:
    posterior = example()
    posterior.draws["conv1"] = posterior.draws["conv1"][:7]
    with pytest.raises(DataError, match="one number of draws"):
        adapter.to_arviz(posterior)


def test_round_trip_through_the_file_with_plain_arviz(tmp_path: Path) -> None:
    posterior = example()
    path = adapter.save_netcdf(posterior, tmp_path / "deep" / "posterior.nc")
    assert os.listdir(path.parent) == ["posterior.nc"]  # nothing temporary left
    tree, again = adapter.to_arviz(posterior), adapter.import_arviz().from_netcdf(str(path))
    for group in ("posterior", "constant_data", "log_likelihood", "observed_data", "posterior_predictive"):
        before, after = dataset(tree, group), dataset(again, group).load()
        xr.testing.assert_equal(before, after)
        for name in before.data_vars:
            assert before[name].dtype == after[name].dtype
            assert before[name].attrs == after[name].attrs
    assert dataset(again, "posterior").attrs["inference_library"] == "pyro"


def test_writing_over_an_open_file_and_a_failed_write_keep_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = adapter.save_netcdf(example(), tmp_path / "p.nc")
    old = path.read_bytes()
    opened = adapter.import_arviz().from_netcdf(str(path))  # lazily, so the file is held open
    assert adapter.save_netcdf(example(draws=10), path).read_bytes() != old
    assert dataset(opened, "posterior").sizes["draw"] == 50
    current = path.read_bytes()

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        adapter.save_netcdf(example(), path)
    assert path.read_bytes() == current and os.listdir(tmp_path) == ["p.nc"]


def test_the_largest_weight_sites_shrink_first_to_fit_the_limit(tmp_path: Path) -> None:
    posterior = FakePosterior()
    for i, n in enumerate((8, 64, 16)):
        loc = torch.randn(n, 10, 3, 3, generator=torch.Generator().manual_seed(i))
        posterior.sites[f"w{i}"] = Site(f"w{i}", loc, loc.abs(), WEIGHT_DIMS, "weight")
    limit = 30_000  # all three need 63 kB, the two smaller ones 17 kB
    path = adapter.save_netcdf(posterior, tmp_path / "p.nc", max_bytes=limit)
    constants = dataset(adapter.import_arviz().from_netcdf(str(path)), "constant_data")
    assert {"w0_loc", "w2_loc", "w1_loc_rms", "w1_scale_rms"} <= set(constants.data_vars)
    assert "w1_loc" not in constants
    rms = posterior.sites["w1"].loc.square().mean((1, 2, 3)).sqrt()
    np.testing.assert_allclose(constants["w1_loc_rms"].values, rms.numpy(), rtol=1e-6)
    assert "w1_loc" in adapter.datasets(posterior)["constant_data"]  # no limit in memory


def test_arviz_functions_take_the_container() -> None:
    az = adapter.import_arviz()
    tree = adapter.to_arviz(example(draws=400))
    table = az.summary(tree, var_names=["conv1"], kind="stats")
    assert len(table) == 6
    expected = example(draws=400).draws["conv1"].mean(0).numpy()
    np.testing.assert_allclose(table["mean"].astype(float).to_numpy(), expected, atol=6e-3)  # 3 digits shown


def test_leave_one_out_reads_the_log_likelihood() -> None:
    posterior = example(draws=300)
    posterior.predictive = {"log_likelihood": torch.full((300, 20), -0.5)}  # the same under every draw
    posterior.predictive["log_likelihood"] += 1e-3 * torch.randn(300, 20)
    result = adapter.import_arviz().loo(adapter.to_arviz(posterior))
    elpd = float(result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd)
    assert elpd == pytest.approx(-10.0, abs=0.01)  # 20 examples


def test_an_empty_posterior_makes_an_empty_container() -> None:
    assert adapter.datasets(FakePosterior()) == {}
