"""Trajectories of filters: which lines are drawn how."""

from __future__ import annotations

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from pyrobnn.errors import ConfigError, DataError
from pyrobnn.summary.state import from_state, to_state
from pyrobnn.summary.types import ChannelSummary, Posterior
from pyrobnn.views.plots import trajectories
from pyrobnn.views.plots_history import busiest, cut_in_round
from pyrobnn.views.plots_style import CUT, GREY, KEPT


def posterior() -> Posterior:
    """Two rounds: the first cut filter 1 (for 0) of "a" and nothing of "b", the second filter 3 (for 2) of "a"."""
    kept = {"a": [True, False, True, False, True], "b": [True, True]}
    channels = {
        name: ChannelSummary(name, torch.ones(len(k)), torch.ones(len(k)), "score", torch.tensor(k))
        for name, k in kept.items()
    }
    whole = {
        "norms": torch.rand(6, 5),
        "pairs": torch.tensor([[1, 0], [3, 2], [0, 2], [2, 4]]),
        "units": torch.arange(5),
    }
    later = {"norms": torch.rand(3, 4), "pairs": torch.tensor([[2, 1], [0, 1]]), "units": torch.tensor([0, 2, 3, 4])}
    other = {"norms": torch.rand(6, 2), "pairs": torch.tensor([[0, 1]]), "units": torch.arange(2)}
    return Posterior({}, channels, trajectories=[{"a": whole, "b": other}, {"a": later, "b": other}])


def axes():
    return Figure(figsize=(6, 4)).add_subplot()


def test_what_each_round_cut() -> None:
    p = posterior()
    assert cut_in_round(p, "a", 0).tolist() == [False, True, False, False, False]
    assert cut_in_round(p, "a", 1).tolist() == [False, False, True, False]
    assert not cut_in_round(p, "b", 0).any()
    assert busiest(p) == "a"


@pytest.mark.parametrize(("number", "goes", "stays"), [(1, 1, 0), (2, 2, 1)])
def test_lines(number: int, goes: int, stays: int) -> None:
    p = posterior()
    ax = trajectories(p, round=number, ax=axes())
    norms = p.trajectories[number - 1]["a"]["norms"].double().numpy()
    bold = [line for line in ax.lines if line.get_linewidth() == 2]
    assert [(to_hex(line.get_color()).upper(), line.get_linestyle()) for line in bold] == [(KEPT, "-"), (CUT, "--")]
    assert (bold[0].get_ydata() == norms[:, stays]).all() and (bold[1].get_ydata() == norms[:, goes]).all()
    thin = [line for line in ax.lines if line.get_linewidth() != 2]
    assert sorted(to_hex(line.get_color()).upper() for line in thin).count(CUT) == 1
    assert sum(to_hex(line.get_color()).upper() == GREY for line in thin) == norms.shape[1] - 1
    assert "a" in ax.get_ylabel()


def test_a_round_that_cut_nothing_of_a_group() -> None:
    ax = trajectories(posterior(), "b", ax=axes())
    assert len(ax.lines) == 2 and not any(line.get_linewidth() == 2 for line in ax.lines)


def test_refusals_and_state() -> None:
    p = posterior()
    with pytest.raises(DataError, match="hbfp"):
        trajectories(Posterior({}, {}), ax=axes())
    with pytest.raises(ConfigError, match="round from 1 to 2"):
        trajectories(p, round=3, ax=axes())
    with pytest.raises(ConfigError, match="'c'"):
        trajectories(p, "c", ax=axes())
    again = from_state(to_state(p))
    assert torch.equal(again.trajectories[1]["a"]["units"], torch.tensor([0, 2, 3, 4]))
