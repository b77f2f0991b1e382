"""Plots: what they show, that they leave pyplot alone, and that they stay fast."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from pyrobnn.errors import ConfigError, DataError
from pyrobnn.metrics.evaluate import Tally
from pyrobnn.views import plots
from pyrobnn.views.plots_history import _density


def posterior(groups: dict[str, int], statistic: str = "snr", seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    channels = {}
    for name, n in groups.items():
        loc, scale = torch.randn(n, generator=g), torch.rand(n, generator=g) + 0.05
        score = loc.abs() / scale if statistic == "snr" else torch.rand(n, generator=g)
        cut = 1.0 if statistic == "snr" else 0.5
        channels[name] = SimpleNamespace(
            group=name,
            snr=score,
            statistic=statistic,
            kept=score > cut,
            threshold=cut,
            round=0,
            loc=loc if statistic == "snr" else None,
            scale=scale if statistic == "snr" else None,
        )
    first, n = next(iter(groups.items()))
    weight = torch.randn(n, 3, 5, 5, generator=g)
    site = SimpleNamespace(
        name=f"{first}.weight",
        loc=weight,
        scale=weight.abs(),
        kind="weight",
        group=None,
        dims=("filter", "in_channel", "kh", "kw"),
    )
    history = [{k: c.snr * 2.0**-e for k, c in channels.items()} for e in range(30)]
    return SimpleNamespace(
        sites={site.name: site}, channels=channels, draws={}, history=history, net_widths={}, trajectories=[]
    )


def axes() -> Any:
    return Figure(figsize=(6.4, 4), layout="constrained").add_subplot()


def draw(ax: Any) -> bytes:
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png")
    return buffer.getvalue()


def points(ax: Any) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the kept and of the cut channels of an `snr_plot`."""
    kept, cut = (c for c in ax.collections if isinstance(c, PathCollection))
    return np.asarray(kept.get_offsets()), np.asarray(cut.get_offsets())


def test_snr_plot_shows_every_channel_sorted_in_its_group() -> None:
    p = posterior({"a": 7, "b": 30})
    p.channels["b"].threshold = None
    ax = axes()
    assert plots.snr_plot(p, ax=ax) is ax
    kept, cut = points(ax)
    for i, channel in enumerate(p.channels.values()):
        inside = [xy[(xy[:, 0] > i) & (xy[:, 0] < i + 1)] for xy in (kept, cut)]
        everything = np.concatenate(inside)
        everything = everything[everything[:, 0].argsort()]
        np.testing.assert_allclose(everything[:, 1], channel.snr.sort(descending=True).values, rtol=1e-6)
        assert len(inside[0]) == int(channel.kept.sum())
    lines = next(c for c in ax.collections if isinstance(c, LineCollection)).get_segments()
    assert [line.tolist() for line in lines] == [[[0, 1], [1, 1]]]  # only group a has a cut line
    n = int(p.channels["a"].kept.sum())
    assert ax.get_xticklabels()[0].get_text() == f"a\n{n}/7"
    assert ax.get_yscale() == "log"


def test_snr_plot_survives_zeros_infinities_and_nan() -> None:
    p = posterior({"a": 6})
    p.channels["a"].snr = torch.tensor([0.0, float("inf"), float("nan"), 1e-30, 5.0, 2.0])
    ax = plots.snr_plot(p, ax=axes())
    draw(ax)
    y = np.concatenate(points(ax))[:, 1]
    assert len(y) == 6 and np.isfinite(y).all() and (y > 0).all() and y.max() == 10.0


def test_snr_plot_of_inclusions_is_linear_and_selects_groups() -> None:
    p = posterior({"a": 7, "b": 30}, "inclusion")
    ax = plots.snr_plot(p, ["b"], ax=axes())
    assert ax.get_yscale() == "linear" and "inclusion" in ax.get_ylabel()
    assert sum(len(xy) for xy in points(ax)) == 30
    with pytest.raises(ConfigError, match="'c'"):
        plots.snr_plot(p, ["c"], ax=axes())
    with pytest.raises(DataError, match="channel groups"):
        plots.snr_plot(SimpleNamespace(channels={}), ax=axes())  # type: ignore[arg-type]


def test_thousands_of_channels_are_fast() -> None:
    p = posterior({f"layer{i}": 512 for i in range(20)})
    start = time.process_time()
    draw(plots.snr_plot(p, ax=axes()))
    draw(plots.forest(p, ax=axes()))
    draw(plots.snr_ridge(p.history, ax=axes()))
    assert time.process_time() - start < 10  # about 1 s on an idle core


def test_forest_has_the_lowest_and_the_highest_rows() -> None:
    p = posterior({"a": 30, "b": 40})
    ax = plots.forest(p, 4, ax=axes())
    scores = torch.cat([c.snr for c in p.channels.values()])
    names = [f"{c.group}[{i}]" for c in p.channels.values() for i in range(len(c.snr))]
    order = scores.argsort().tolist()
    expected = [names[i] for i in order[:4] + order[-4:]]
    assert [t.get_text() for t in ax.get_yticklabels()] == expected
    assert any("62 of 70" in t.get_text() for t in ax.texts)
    assert len(plots.forest(p, 20, ax=axes()).get_yticks()) == 40
    assert len(plots.forest(posterior({"a": 5}), 20, ax=axes()).get_yticks()) == 5
    with pytest.raises(ConfigError, match="between 1 and 20"):
        plots.forest(p, 21, ax=axes())


def test_forest_interval_is_the_normal_one_or_comes_from_draws() -> None:
    p = posterior({"a": 3})
    c = p.channels["a"]
    c.kept = torch.ones(3).bool()

    def ends(ax: Any) -> list[list[float]]:
        bars = next(x for x in ax.collections if isinstance(x, LineCollection))
        return [sorted(segment[:, 0].tolist()) for segment in bars.get_segments()]

    order = c.snr.argsort()
    half = 1.96 * c.scale[order]
    expected = torch.stack([c.loc[order] - half, c.loc[order] + half], 1)
    np.testing.assert_allclose(ends(plots.forest(p, ax=axes())), expected, rtol=1e-5)
    draws = c.loc + c.scale * torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    c.loc = c.scale = None
    p.draws = {"a.norm": draws}
    low = (draws.mean(0) - 1.96 * draws.std(0))[order]
    np.testing.assert_allclose([e[0] for e in ends(plots.forest(p, ax=axes()))], low, rtol=1e-5)


def test_ridge_draws_every_epoch_or_an_even_choice() -> None:
    p = posterior({"a": 50, "b": 20})
    ax = plots.snr_ridge(p.history, "a", max_rows=10, ax=axes())
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert len(labels) == 10 and labels[0] == "1" and labels[-1] == "30"
    assert len(plots.snr_ridge(p.history[:3], ax=axes()).get_yticks()) == 3
    draw(plots.snr_ridge([{"a": torch.zeros(4)}], ax=axes()))  # one epoch, all dead
    with pytest.raises(DataError, match="history of c"):
        plots.snr_ridge(p.history, "c", ax=axes())


def test_ridge_density_is_a_density() -> None:
    values = np.random.default_rng(0).normal(0, 1, 5000)
    grid = np.linspace(-6, 6, 400)
    curve = _density(values, grid, 0.2)
    assert curve.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-3)
    exact = np.exp(-0.5 * grid**2 / 1.04) / np.sqrt(2 * np.pi * 1.04)  # N(0,1) smoothed by N(0, 0.2²)
    assert np.abs(curve - exact).max() < 0.03


def test_inclusion_histogram_counts_all_channels() -> None:
    p = posterior({"a": 40, "b": 60}, "inclusion")
    ax = plots.inclusion_histogram(p, bins=10, ax=axes())
    assert sum(bar.get_height() for bar in ax.patches) == 100
    with pytest.raises(DataError, match="without gates"):
        plots.inclusion_histogram(posterior({"a": 4}), ax=axes())


def test_filter_maps_frame_each_filter_and_shift_colours_by_sign() -> None:
    p = posterior({"a": 9})
    ax = plots.filter_maps(p, ax=axes())
    assert len(ax.patches) == 9
    colours = [tuple(patch.get_edgecolor()) for patch in ax.patches]
    kept = p.channels["a"].kept
    blue = colours[int(kept.int().argmax())]
    assert len(set(colours)) == 2 and [c == blue for c in colours] == kept.tolist()
    picture = ax.images[0].get_array()
    left, bottom = ax.patches[0].get_xy()
    tile = picture[int(bottom + 0.5) :, int(left + 0.5) :][:5, :5]
    loc = p.sites["a.weight"].loc[0].permute(1, 2, 0).double()
    np.testing.assert_allclose(tile, 0.5 + 0.5 * loc / p.sites["a.weight"].loc.abs().max(), atol=1e-6)
    for channels in (1, 7):
        site = p.sites["a.weight"]
        site.loc = torch.randn(9, channels, 3, 3)
        site.scale = site.loc.abs()
        draw(plots.filter_maps(p, ax=axes()))
    with pytest.raises(ConfigError, match="a.weight"):
        plots.filter_maps(p, "nothing", ax=axes())
    with pytest.raises(DataError, match="kh, kw"):
        plots.filter_maps(SimpleNamespace(sites={}, channels={}), ax=axes())  # type: ignore[arg-type]


def test_width_graph_has_both_bars_per_group() -> None:
    ax = plots.width_graph({"a": 20, "b": 50}, {"a": 5}, ax=axes())
    assert [bar.get_height() for bar in ax.patches] == [20, 50, 5, 0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a\n5/20", "b\n0/50"]
    with pytest.raises(DataError):
        plots.width_graph({}, {}, ax=axes())


def test_accuracy_macs_in_percent_of_dense() -> None:
    ax = plots.accuracy_macs([50.0, 200.0], [0.8, 0.9], dense=(400.0, 0.95), labels=["x", "y"], ax=axes())
    x, y = ax.lines[0].get_data()
    assert np.allclose(x, [50, 12.5]) and np.allclose(y, [90, 80])
    assert len(plots.accuracy_macs([50.0], [0.8], dense=(400.0, None), ax=axes()).lines) == 1
    with pytest.raises(DataError, match="2 MACs, 1 acc"):
        plots.accuracy_macs([1.0, 2.0], [0.5], ax=axes())


def test_reliability_diagram_shows_the_bins_and_the_ece() -> None:
    tally = Tally(bins=5)
    with pytest.raises(DataError, match="empty"):
        plots.reliability_diagram(tally.reliability(), ax=axes())
    tally.add_probs(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.65, 0.35]]), torch.tensor([0, 1, 0]))
    ax = plots.reliability_diagram(tally.reliability(), ax=axes())
    heights = [bar.get_height() for bar in ax.patches if bar.get_label() != "examples"][:2]
    assert heights == pytest.approx([1.0, 0.5])
    assert any(f"{100 * (2 / 3 * 0.4 + 1 / 3 * 0.35):.2f}" in t.get_text() for t in ax.texts)
    draw(ax)


def test_pyplot_is_left_alone_when_axes_are_given_and_used_when_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    plt.close("all")  # what other tests have left
    p, settings = posterior({"a": 12}), dict(matplotlib.rcParams)
    plots.snr_plot(p, ax=axes())
    plots.forest(p, ax=axes())
    plots.filter_maps(p, ax=axes())
    plots.snr_ridge(p.history, ax=axes())
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == settings
    ax = plots.snr_plot(p)
    assert plt.get_fignums() and ax.figure is plt.gcf()
    plt.close("all")
