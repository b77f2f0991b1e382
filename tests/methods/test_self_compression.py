"""Self-compression: the loop stops by itself, finds what was planted, keeps the survivors' posterior."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.methods.registry import METHODS
from pyrobnn.pipeline.state import State
from pyrobnn.pipeline.store import RunStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short
SETTINGS: dict[str, Any] = {"precision": "fp32", "seed": 0, "progress": False}


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(320), valid=full.valid.take(100), test=full.test.take(200))


@pytest.fixture(scope="module")
def dense(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained net of whose kernels some are made redundant: almost zero, and nobody misses them."""
    torch.manual_seed(0)
    model = pb.BayesianModel(pb.nets.small_cnn(), data_size=len(data.train))
    pb.fit(model, pb.guides.NoLatents(), data, epochs=10, batch_size=16, lr=2e-3, progress=False, validate=False)
    net = pb.deterministic_net(model, pb.guides.NoLatents())
    with torch.no_grad():
        for rows in (net.fc1.weight, net.fc1.bias, net.fc2.weight.T):
            rows[PLANTED] *= 1e-4
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    pb.nets.save_weights(net, path, mean=data.mean, std=data.std, trained_on="train")
    return path


PLANTED = [3, 10, 11, 40, 41, 42, 43, 60]


@pytest.mark.parametrize("name", ["self-compression", "self-compression-snr"])
def test_planted_redundancy_is_found_and_the_loop_stops(name: str, data: Data, dense: Path) -> None:
    result = pb.compress("small_cnn", data, name, weights=dense, epochs=10, **SETTINGS)
    rounds = result.report["rounds"]
    if name == "self-compression":
        assert not set(PLANTED) & set(result.plan.keep["fc1"])
        assert rounds[0]["widths"]["fc1"] <= 64 - len(PLANTED)
    # The last round found nothing, or the epochs were over.
    assert len(rounds) == 1 or rounds[-1]["widths"] == rounds[-2]["widths"] or result.report["epochs"] == 10
    assert result.report["rule"] == METHODS[name].rule
    assert result.report["compact"]["accuracy"] > 0.6


def test_a_tolerance_is_all_that_is_asked(data: Data, dense: Path) -> None:
    result = pb.compress("small_cnn", data, "self-compression", max_drop=5.0, epochs=10, weights=dense, **SETTINGS)
    assert result.report["reduction"]["macs"] > 0.2
    assert result.report["validation"]["compact"] >= result.report["validation"]["dense"] - 0.1


def test_survivors_keep_their_posterior_between_rounds(
    data: Data, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round starts from is what the last one ended with, at the kept coordinates."""
    states: dict[str, State] = {}
    original = RunStore.write

    def write(self: RunStore, number: int, name: str, state: State) -> None:
        original(self, number, name, state)
        states[name] = state

    monkeypatch.setattr(RunStore, "write", write)
    pb.compress("small_cnn", data, "self-compression", target_macs=0.5, epochs=6, weights=dense, **SETTINGS)
    assert "cut 2" in states
    before, after = (states[name].variational.guide for name in ("infer 1", "cut 1"))
    keep = torch.tensor(states["cut 1"].plan.keep["conv1"])
    assert len(keep) < 16
    for part in ("loc", "log_scale"):
        assert torch.equal(after[f"{part}.conv1|weight"], before[f"{part}.conv1|weight"][keep])


def test_the_rounds_are_resumed(data: Data, dense: Path, tmp_path: Any) -> None:
    """Killed after a cut: the run goes on from there, and the choice is not made again on another state."""
    options: dict[str, Any] = {"epochs": 8, "weights": dense, **SETTINGS}
    whole = pb.compress("small_cnn", data, "self-compression", **options)

    class Killed(BaseException):
        pass

    def write(self: RunStore, number: int, name: str, state: State) -> None:
        original(self, number, name, state)
        if name == "cut 1":
            raise Killed

    original = RunStore.write
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunStore, "write", write)
        pb.compress("small_cnn", data, "self-compression", out=tmp_path / "run", **options)
    again = pb.compress("small_cnn", data, "self-compression", out=tmp_path / "run", resume=True, **options)
    assert again.plan.keep == whole.plan.keep
    for name, value in whole.compact.state_dict().items():
        assert torch.equal(again.compact.state_dict()[name], value)
