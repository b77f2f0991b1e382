"""`laplace` in the pipeline: nothing is fitted, cuts stop where the evidence stops rising, a drop is held."""

from __future__ import annotations

from dataclasses import replace

import pytest

import pyrobnn as pb


@pytest.fixture(scope="module")
def data() -> pb.Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(600))


@pytest.mark.filterwarnings("ignore:no target was given")
@pytest.mark.parametrize("target", [{}, {"target_macs": 0.4}])
def test_no_epoch_goes_to_inference(data, target):
    result = pb.compress("small_cnn", data, "laplace", epochs=8, progress=False, **target)
    report = result.report
    assert report["epochs_by_phase"]["infer"] == 0 and report["epochs"] == 8
    assert report["reduction"]["macs"] >= (0.6 if target else 0.02)
    assert report["compact"]["accuracy"] > report["dense"]["accuracy"] - 0.05
    channels = result.posterior.channels
    assert all(bool((c.scale > 0).all()) and c.evidence is not None for c in channels.values())
    if not target:  # what was cut last had evidence against it, and nothing that was kept has
        assert all(bool((c.evidence[c.kept] >= 0).all()) for c in channels.values() if int(c.kept.sum()) > 1)


@pytest.mark.slow
def test_under_a_drop_the_network_trains_between_cuts(data):
    result = pb.compress("small_cnn", data, "laplace", max_drop=5.0, epochs=14, progress=False)
    assert result.report["epochs_by_phase"]["infer"] > 0
    assert result.report["reduction"]["macs"] > 0.3
