"""Lines of every channel's statistic over the epochs."""

from __future__ import annotations

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from pyrobnn.errors import DataError
from pyrobnn.summary.types import ChannelSummary, Posterior
from pyrobnn.views.plots import snr_lines

matplotlib.use("Agg")
NAN = float("nan")


def posterior(statistic: str = "snr") -> Posterior:
    kept = torch.tensor([True, False, True])
    values = torch.tensor([4.0, 0.2, 3.0])
    found = Posterior({}, {"conv1": ChannelSummary("conv1", values, values, statistic, kept)})
    found.history = [{"conv1": values}, {"fc1": torch.ones(2)}, {"conv1": torch.tensor([5.0, NAN, 2.0])}]
    return found


def test_a_line_ends_where_its_channel_was_cut() -> None:
    ax = snr_lines(posterior(), ax=Figure().add_subplot())
    drawn = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "."]
    assert [list(line.get_xdata()) for line in drawn] == [[1, 3]] * 3  # the record of another group is not one of this
    assert sum(bool(torch.isnan(torch.as_tensor(line.get_ydata())).any()) for line in drawn) == 1
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cut (1)", "kept (2)", "cut line"]
    assert ax.get_yscale() == "log" and ax.get_ylabel() == "SNR of conv1"


def test_probabilities_are_not_on_a_log_scale() -> None:
    ax = snr_lines(posterior("inclusion"), threshold=None, ax=Figure().add_subplot())
    assert ax.get_yscale() == "linear" and ax.get_ylabel() == "inclusion probability of conv1"
    assert len(ax.get_legend().get_texts()) == 2


def test_no_history_is_said() -> None:
    with pytest.raises(DataError, match="history of fc1"):
        snr_lines(posterior(), "fc1")
