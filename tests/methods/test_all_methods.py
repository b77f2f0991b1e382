"""Every registered method and estimator on the same small road: the budget is hit, the net is smaller and works."""

from __future__ import annotations

import pytest

import pyrobnn as pb
from pyrobnn.methods.registry import METHODS


def _shorter() -> pb.Data:
    from dataclasses import replace

    data = pb.load_data("digits")
    return replace(data, train=data.train.take(300))


@pytest.mark.parametrize("name", METHODS)
def test_method_hits_a_budget(name: str) -> None:
    result = pb.compress("small_cnn", _shorter(), name, target_macs=0.5, epochs=8, progress=False)
    left = result.report["compact"]["macs"] / result.report["dense"]["macs"]
    assert 0.5 - 0.08 < left <= 0.5  # one unit of this net is up to 6 % of its MACs
    assert result.posterior.channels.keys() == result.plan.keep.keys()
    assert sum(int(c.kept.sum()) for c in result.posterior.channels.values()) == sum(result.plan.widths().values())
    assert result.report["compact"]["accuracy"] > 0.3  # chance is 0.1


@pytest.mark.parametrize("estimator", ["weight", "local", "moments"])
def test_estimators_take_the_same_road(estimator: str) -> None:
    result = pb.compress(
        "small_cnn", _shorter(), "gaussian", target_macs=0.6, epochs=8, estimator=estimator, progress=False
    )
    assert result.report["reduction"]["macs"] >= 0.4
    assert result.report["compact"]["accuracy"] > 0.3
