"""The whole road on small digits: the report, the files, budgets, and runs that are killed."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn import cli
from pyrobnn.channels import timing
from pyrobnn.channels.times import LayerTimes
from pyrobnn.data import Data
from pyrobnn.errors import CheckpointError
from pyrobnn.inference.fit import Loop
from pyrobnn.io.checkpoint import load_checkpoint, save_checkpoint
from pyrobnn.io.measured import Measurements
from pyrobnn.pipeline.state import State
from pyrobnn.pipeline.store import RunStore
from pyrobnn.report.headline import target_lines
from pyrobnn.report.report import VOLATILE

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short
EPOCHS = 5
SETTINGS: dict[str, Any] = {"method": "gaussian", "epochs": EPOCHS, "precision": "fp32", "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, 300 to train and 150 to test, as a file that the command line can read again."""
    full = pb.load_data("digits", valid_fraction=0.0)
    path = tmp_path_factory.mktemp("data") / "few.npz"
    train, test = full.train.take(300), full.test.take(150)
    np.savez(
        path, x_train=train.images.numpy(), y_train=train.labels.numpy(),
        x_test=test.images.numpy(), y_test=test.labels.numpy(),
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def data(npz: Path) -> Data:
    return pb.load_data(npz)


@pytest.fixture(scope="module")
def finished(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pb.Result]:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, pb.compress("small_cnn", npz, target_macs=0.4, out=out, **SETTINGS)


def steady(report: Any) -> Any:
    """The report without what may differ between two measurements."""
    if isinstance(report, dict):
        return {key: steady(value) for key, value in report.items() if key not in VOLATILE}
    return [steady(value) for value in report] if isinstance(report, list) else report


# What a run leaves


def test_report_has_every_promised_key(finished: tuple[Path, pb.Result]) -> None:
    out, result = finished
    report = json.loads((out / "report.json").read_text())
    assert steady(report) == steady(json.loads(json.dumps(result.report)))
    top = {
        "schema", "method", "model", "data", "seed", "rule", "target", "validation_clean", "epochs", "epochs_by_phase",
        "seconds", "precision", "device", "versions", "dense", "compact", "reduction", "rounds",
    }  # fmt: skip
    assert top <= set(report)
    measured = {
        "metric",
        "value",
        "accuracy",
        "nll",
        "ece",
        "params",
        "nonzero_params",
        "macs",
        "bytes",
        "latency_ms",
        "widths",
    }
    assert set(report["dense"]) == set(report["compact"]) == measured
    assert set(report["reduction"]) == {"params", "macs", "nonzero_params"}
    assert set(report["epochs_by_phase"]) == {"dense", "infer", "tune"}
    assert report["schema"] == 1 and report["target"]["target_macs"] == 0.4 and report["validation_clean"] is True
    assert report["epochs"] == EPOCHS == sum(report["epochs_by_phase"].values())
    assert len(report["rounds"]) == len(result.posterior.history) >= 1


def test_the_numbers_are_those_of_the_saved_module(finished: tuple[Path, pb.Result], data: Data) -> None:
    out, result = finished
    small, figures = pb.load_compact(out), result.report["compact"]
    assert figures["params"] == sum(p.numel() for p in small.parameters())
    assert figures["nonzero_params"] == sum(int((p != 0).sum()) for p in small.parameters())
    assert figures["widths"]["conv1"] == small.conv1.out_channels == len(result.plan.keep["conv1"])
    macs = 64 * small.conv1.weight.numel() + 16 * small.conv2.weight.numel()
    macs += small.fc1.weight.numel() + small.fc2.weight.numel()
    assert figures["macs"] == macs
    x = data.test.normalise(data.test.images)
    with torch.no_grad():
        logits = small(x)
    assert figures["accuracy"] == pytest.approx(float((logits.argmax(-1) == data.test.labels).float().mean()))
    assert figures["nll"] == pytest.approx(float(nn.functional.cross_entropy(logits, data.test.labels)), abs=1e-5)
    dense = result.report["dense"]
    for key in ("params", "macs"):
        assert result.report["reduction"][key] == pytest.approx(1 - figures[key] / dense[key])
    assert dense["params"] == 13754


def test_loaded_net_computes_the_same_bits(finished: tuple[Path, pb.Result], data: Data) -> None:
    out, result = finished
    x = data.test.normalise(data.test.images)
    with torch.no_grad():
        assert torch.equal(pb.load_compact(out)(x), result.compact(x))
        own = pb.load_compact(out, factory=lambda: pb.nets.build("small_cnn", in_channels=1, image_size=8))
        assert torch.equal(own(x), result.compact(x))


def test_the_plan_alone_turns_dense_into_compact(finished: tuple[Path, pb.Result], data: Data) -> None:
    out, result = finished
    plan = pb.PruningPlan.load(out / "plan.json")
    assert plan.keep == result.plan.keep
    small = pb.compact(result.dense, plan, data.example)
    assert {n: v.shape for n, v in small.state_dict().items()} == {
        n: v.shape for n, v in result.compact.state_dict().items()
    }


def test_files(finished: tuple[Path, pb.Result]) -> None:
    out, result = finished
    names = {path.name for path in out.iterdir()}
    expected = {"report.json", "report.html", "compact.safetensors", "compact.json", "plan.json", "posterior.nc"}
    assert expected | {"checkpoint.pt", "stages", "dense.safetensors", "manifest.json"} == names
    assert "http" not in (out / "compact.json").read_text()
    for path in (out / "checkpoint.pt", *(out / "stages").iterdir()):
        torch.load(path, weights_only=True)
    assert set(result.posterior.channels) == set(result.plan.keep)
    for name, channel in result.posterior.channels.items():  # original coordinates, cut channels included
        assert len(channel.snr) == result.plan.channels[name]
        assert channel.kept.nonzero().flatten().tolist() == result.plan.keep[name]


def test_save_to_a_new_directory(finished: tuple[Path, pb.Result], tmp_path: Path, data: Data) -> None:
    out, result = finished
    result.save(tmp_path / "copy")
    assert torch.equal(pb.load_compact(tmp_path / "copy")(data.example), pb.load_compact(out)(data.example))
    with pytest.raises(pb.CheckpointError, match="another run"):
        result.save(tmp_path / "copy")


# Budgets and limits


def left_after(result: pb.Result, key: str) -> float:
    return result.report["compact"][key] / result.report["dense"][key]


@pytest.mark.parametrize(("key", "target"), [("macs", 0.25), ("params", 0.3)])
def test_budget_is_hit(key: str, target: float, data: Data) -> None:
    result = pb.compress("small_cnn", data, **{f"target_{key}": target}, **{**SETTINGS, "epochs": 4})
    left = left_after(result, key)
    assert left <= target
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    table = pb.channel_groups(net, data.example)
    if target - left > 0.02:  # then one more unit anywhere must exceed it
        for group in table:
            masks = {n: torch.zeros(result.plan.channels[n], dtype=torch.float64) for n in result.plan.keep}
            for name, units in result.plan.keep.items():
                masks[name][units] = 1.0
            gone = (masks[group.name] == 0).nonzero()
            if len(gone):
                masks[group.name][gone[0]] = 1.0
                assert float(getattr(table.cost(masks), key)) > target * result.report["dense"][key]


def test_round_to_min_channels_and_protect(data: Data) -> None:
    settings = {**SETTINGS, "epochs": 4, "target_macs": 0.45}
    result = pb.compress("small_cnn", data, round_to=4, min_channels=6, protect=["fc1"], **settings)
    widths = result.report["compact"]["widths"]
    assert "fc1" not in result.plan.keep and "fc1" in result.report["refused"]
    assert result.compact.fc1.out_features == 64
    assert all(width % 4 == 0 and width >= 6 for width in widths.values())
    assert left_after(result, "macs") <= 0.45


def test_a_latency_is_planned_in_measured_milliseconds(data: Data, tmp_path: Path, monkeypatch: Any) -> None:
    """What was measured when a run began holds for its resume, whatever the clock says then; the report says what is left."""
    monkeypatch.setattr(Measurements, "file", tmp_path / "times.json")

    def one_ms(net: nn.Module, args: Any, cuttable: Any, batch: int) -> LayerTimes:
        first, second = (getattr(net, name).weight.shape[:2] for name in ("conv1", "conv2"))
        grids = [
            (torch.tensor([1, n]), torch.tensor([m]), torch.tensor([[1.0 / n], [1.0]])) for n, m in (first, second)
        ]
        return LayerTimes.of({"conv1.weight": [grids[0]], "conv2.weight": [grids[1]]}, 0.5, batch)

    monkeypatch.setattr(timing, "_measure", one_ms)
    monkeypatch.setattr(timing, "_multiple", lambda *given: 4)
    settings = {**SETTINGS, "epochs": 4, "target_latency": 0.6, "out": tmp_path / "run"}
    result = pb.compress("small_cnn", data, round_to="auto", **settings)
    widths, dense = result.report["compact"]["widths"], result.report["dense"]["widths"]
    assert sum(widths[g] / dense[g] for g in ("conv1", "conv2")) + 0.5 <= 0.6 * 2.5
    assert all(width % 4 == 0 for width in widths.values()) and result.report["settings"]["round_to"] == 4
    target = result.report["target"]
    assert target["asked"] == {"target_latency": 0.6} and 0 < target["reached"]["target_latency"] < 2
    assert target["met"] is (target["reached"]["target_latency"] <= 0.65)
    assert "% of the latency" in " ".join(line["text"] for line in target_lines(result.report))
    monkeypatch.setattr(timing, "_multiple", lambda *given: 8)
    monkeypatch.setattr(timing.ROUNDED, "known", {})
    (tmp_path / "times.json").unlink()
    again = pb.compress("small_cnn", data, round_to="auto", resume=True, **settings)
    assert again.plan == result.plan
    with pytest.raises(CheckpointError, match="target_latency"):
        pb.compress("small_cnn", data, round_to="auto", resume=True, **{**settings, "target_latency": 0.7})


def test_both_targets_and_the_rule_without_any(data: Data) -> None:
    both = pb.compress("small_cnn", data, target_macs=0.5, target_params=0.35, **{**SETTINGS, "epochs": 3})
    assert left_after(both, "macs") <= 0.5 and left_after(both, "params") <= 0.35
    free = pb.compress("small_cnn", data, **{**SETTINGS, "epochs": 3})
    assert free.report["rule"] == "evidence" and free.report["target"] == {}


def test_max_drop(data: Data) -> None:
    result = pb.compress("small_cnn", data, max_drop=100.0, **{**SETTINGS, "epochs": 12})
    assert result.report["rule"] == "max-drop" and left_after(result, "macs") < 1
    assert result.report["epochs"] <= 12
    none = replace(data, valid=replace(data.valid, images=data.valid.images[:0], labels=data.valid.labels[:0]))
    with pytest.raises(pb.ConfigError, match="validation"):
        pb.compress("small_cnn", none, max_drop=1.0, **SETTINGS)


def test_your_own_module(data: Data, tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)
        )

    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(8)
    rng = torch.get_rng_state()
    result = pb.compress(net, data, target_params=0.6, out=tmp_path / "own", **{**SETTINGS, "epochs": 3})
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(before[n], v) for n, v in net.state_dict().items()) and net.training
    with pytest.raises(pb.NetError, match="factory="):
        pb.load_compact(tmp_path / "own")
    with torch.no_grad():
        assert torch.equal(pb.load_compact(tmp_path / "own", factory=make)(data.example), result.compact(data.example))


def test_given_weights_are_not_trained_again(finished: tuple[Path, pb.Result], npz: Path, data: Data) -> None:
    out, first = finished
    weights = out / "dense.safetensors"
    result = pb.compress("small_cnn", npz, weights=weights, target_macs=0.5, **{**SETTINGS, "epochs": 3})
    assert result.report["epochs_by_phase"]["dense"] == 0
    assert result.report["dense"]["accuracy"] == first.report["dense"]["accuracy"]
    assert result.report["trained_on"] == "train" and result.report["validation_clean"] is True
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    with pytest.warns(UserWarning, match="validation images"):
        seen = pb.compress(net, data, trained=True, max_drop=50.0, **{**SETTINGS, "epochs": 3})
    assert seen.report["validation_clean"] is False


def test_weights_that_have_seen_the_validation_images(
    finished: tuple[Path, pb.Result], data: Data, tmp_path: Path
) -> None:
    """With a budget nothing is chosen on data, so all images train; with a drop there is one warning."""
    _, result = finished
    path = tmp_path / "all.safetensors"
    pb.nets.save_weights(result.dense, path, mean=data.mean, std=data.std, trained_on="all")
    budget = pb.compress("small_cnn", data, weights=path, target_macs=0.6, epochs=3, progress=False)
    assert budget.report["validation_clean"] is False
    assert budget.report["validation"] == {"dense": None, "compact": None}
    assert budget.report["reduction"]["macs"] >= 0.4
    with pytest.warns(UserWarning, match="have seen the validation images"):
        drop = pb.compress("small_cnn", data, weights=path, max_drop=2.0, epochs=3, progress=False)
    assert drop.report["validation_clean"] is False


def test_a_likelihood_that_is_not_of_classes_is_refused_before_training(data: Data) -> None:
    with pytest.raises(pb.ConfigError, match="one class per image"):
        pb.compress("small_cnn", data, target_macs=0.5, likelihood=pb.likelihoods.Gaussian(), progress=False)


def test_from_scratch(finished: tuple[Path, pb.Result], data: Data, tmp_path: Path) -> None:
    _, first = finished
    settings = {**SETTINGS, "epochs": 3}
    result = pb.compress("small_cnn", data, from_scratch=first.plan, out=tmp_path / "control", **settings)
    report = result.report
    assert report["method"] == "from-scratch" and report["epochs_by_phase"] == {"dense": 0, "infer": 0, "tune": 3}
    assert report["rule"] == "plan" and not (tmp_path / "control" / "dense.safetensors").exists()
    assert report["compact"]["params"] == first.report["compact"]["params"]
    assert report["compact"]["widths"] == first.report["compact"]["widths"]
    for name, value in result.compact.named_parameters():
        assert not torch.equal(value, dict(first.compact.named_parameters())[name])
    assert pb.load_compact(tmp_path / "control").conv1.out_channels == len(first.plan.keep["conv1"])


def test_minutes_bound_the_run(data: Data) -> None:
    settings = {**SETTINGS, "epochs": None, "minutes": 0.05}
    result = pb.compress("small_cnn", data, target_macs=0.5, **settings)
    assert 2 <= result.report["epochs"] < 200
    assert left_after(result, "macs") <= 0.5


# Runs that are killed


class Killed(BaseException):
    """What nobody catches, like the end of a process."""


@pytest.fixture
def plain_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures in the pages of runs that are only compared by their numbers."""
    monkeypatch.setattr("pyrobnn.compression.store.standard_figures", lambda *args: {})


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original, count = Loop.train_step, 0

    def train_step(self: Loop, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(Loop, "train_step", train_step)


STEPS = 17  # in an epoch: 270 images by 16


# In the dense, the first and second posterior and the tuning phase, in the middle of an epoch and at its start.
@pytest.mark.parametrize("steps", [[7], [STEPS + 3], [2 * STEPS + 1], [3 * STEPS + 9, 4], [5 * STEPS]])
def test_a_killed_run_ends_like_one_never_stopped(
    steps: list[int], npz: Path, tmp_path: Path, finished: tuple[Path, pb.Result], plain_pages: None
) -> None:
    out = tmp_path / "run"
    for step in steps:  # the second kill hits the resumed run
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, step)
            pb.compress("small_cnn", npz, target_macs=0.4, out=out, resume=out.exists(), **SETTINGS)
        assert not (out / "report.json").exists()
    resumed = pb.compress("small_cnn", npz, target_macs=0.4, out=out, resume=True, **SETTINGS)
    whole = finished[1]
    assert steady(json.loads((out / "report.json").read_text())) == steady(json.loads(json.dumps(whole.report)))
    for name, value in whole.compact.state_dict().items():
        assert torch.equal(resumed.compact.state_dict()[name], value), name
    assert resumed.plan.to_json() == whole.plan.to_json()


@pytest.mark.parametrize("where", ["summarize", "check_cut", "measure"])
def test_a_run_killed_between_fits(
    where: str, npz: Path, tmp_path: Path, finished: tuple[Path, pb.Result], plain_pages: None
) -> None:
    module = "pyrobnn.compression.result" if where == "measure" else "pyrobnn.pipeline.rounds"

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(importlib.import_module(module), where, killed)
        pb.compress("small_cnn", npz, target_macs=0.4, out=tmp_path / "run", **SETTINGS)
    pb.compress("small_cnn", npz, target_macs=0.4, out=tmp_path / "run", resume=True, **SETTINGS)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert steady(report) == steady(json.loads(json.dumps(finished[1].report)))


DROP: dict[str, Any] = {**SETTINGS, "epochs": 10, "max_drop": 2.0}


@pytest.fixture(scope="module")
def within_drop(data: Data) -> pb.Result:
    """A run to a validation accuracy that nobody stopped."""
    return pb.compress("small_cnn", data, **DROP)


@pytest.mark.parametrize("where", ["cut 1", "accept 2", "tune"])
def test_a_killed_run_within_a_drop(
    where: str, data: Data, tmp_path: Path, within_drop: pb.Result, plain_pages: None
) -> None:
    """The verdicts of earlier rounds are not judged again by a later network."""
    original = RunStore.write

    def write(self: RunStore, number: int, name: str, state: State) -> None:
        original(self, number, name, state)
        if name == where:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunStore, "write", write)
        pb.compress("small_cnn", data, out=tmp_path / "run", **DROP)
    resumed = pb.compress("small_cnn", data, out=tmp_path / "run", resume=True, **DROP)
    assert steady(json.loads(json.dumps(resumed.report))) == steady(json.loads(json.dumps(within_drop.report)))


@pytest.mark.slow
def test_a_judgement_is_not_made_again(
    data: Data, tmp_path: Path, plain_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third round fails; a run killed right then must not fail the second on resuming."""
    judged: list[float] = []

    def recovered(accuracy: float, *others: Any) -> bool:
        judged.append(accuracy)
        return len(judged) % 2 == 1  # the second that is judged, the third round, fails

    monkeypatch.setattr("pyrobnn.pipeline.acceptance.recovered", recovered)
    whole = pb.compress("small_cnn", data, **DROP)
    original = RunStore.write

    def write(self: RunStore, number: int, name: str, state: State) -> None:
        original(self, number, name, state)
        if name == "accept 3":
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunStore, "write", write)
        pb.compress("small_cnn", data, out=tmp_path / "run", **DROP)
    resumed = pb.compress("small_cnn", data, out=tmp_path / "run", resume=True, **DROP)
    assert len(judged) == 4 and judged[:2] == judged[2:]
    assert steady(json.loads(json.dumps(resumed.report))) == steady(json.loads(json.dumps(whole.report)))
    for name, channel in resumed.posterior.channels.items():
        assert channel.kept.nonzero().flatten().tolist() == resumed.plan.keep[name]


def test_seconds_count_the_interrupted_parts(npz: Path, tmp_path: Path, plain_pages: None) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3 * STEPS)
        pb.compress("small_cnn", npz, target_macs=0.4, out=out, **SETTINGS)
    state = load_checkpoint(out / "checkpoint.pt")
    assert state["seconds"] > 0
    state["seconds"] += 1000.0
    save_checkpoint(state, out / "checkpoint.pt")
    resumed = pb.compress("small_cnn", npz, target_macs=0.4, out=out, resume=True, **SETTINGS)
    assert 1000 < resumed.report["seconds"] < 1300


def test_resuming_a_finished_run_trains_nothing(
    npz: Path, finished: tuple[Path, pb.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = finished
    kill_at(monkeypatch, 1)
    again = pb.compress("small_cnn", npz, target_macs=0.4, out=out, resume=True, **SETTINGS)
    assert steady(json.loads(json.dumps(again.report))) == steady(json.loads(json.dumps(first.report)))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"epochs": 6},
        {"target_macs": 0.5},
        {"min_channels": 2},
        {"protect": ["fc1"]},
        {"recipe": {"temperature": 3.0}},
    ],
)
def test_a_resume_with_other_settings_is_refused(
    change: dict[str, Any], npz: Path, finished: tuple[Path, pb.Result]
) -> None:
    out, _ = finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    settings = {**SETTINGS, "target_macs": 0.4, **change}
    name = next(iter(change))
    with pytest.raises(pb.CheckpointError, match=f"belongs to a run with {name}[.=]"):
        pb.compress("small_cnn", npz, out=out, resume=True, **settings)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_process_killed_by_the_system(npz: Path, tmp_path: Path, finished: tuple[Path, pb.Result]) -> None:
    out = tmp_path / "run"
    arguments = [
        "compress", "--model", "small_cnn", "--data", str(npz), "--target-macs", "0.4", "--epochs", str(EPOCHS),
        "--method", "gaussian", "--seed", "3", "--precision", "fp32", "--out", str(out),
    ]  # fmt: skip
    script = "import sys, pyrobnn.cli as c; c.main(sys.argv[1:])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--resume"])
    assert stop.value.code == 0
    report = json.loads((out / "report.json").read_text())
    if torch.get_num_threads() == 1:
        assert steady(report) == steady(json.loads(json.dumps(finished[1].report)))
