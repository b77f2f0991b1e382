"""One short run: what it leaves, and what it may begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.report.report import steady

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short


def test_report_has_every_promised_key(finished: tuple[Path, pb.Result]) -> None:
    out, result = finished
    report = json.loads((out / "report.json").read_text())
    assert steady(report) == steady(result.report)
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
    assert report["epochs"] == 5 == sum(report["epochs_by_phase"].values())
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


# What a run may begin with


def test_your_own_module(data: Data, tmp_path: Path, short: dict[str, Any]) -> None:
    def make() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)
        )

    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(8)
    rng = torch.get_rng_state()
    result = pb.compress(net, data, target_params=0.6, out=tmp_path / "own", **{**short, "epochs": 3})
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(before[n], v) for n, v in net.state_dict().items()) and net.training
    with pytest.raises(pb.NetError, match="factory="):
        pb.load_compact(tmp_path / "own")
    with torch.no_grad():
        assert torch.equal(pb.load_compact(tmp_path / "own", factory=make)(data.example), result.compact(data.example))


def test_given_weights_are_not_trained_again(
    finished: tuple[Path, pb.Result], npz: Path, data: Data, short: dict[str, Any]
) -> None:
    out, first = finished
    weights = out / "dense.safetensors"
    result = pb.compress("small_cnn", npz, weights=weights, target_macs=0.5, **{**short, "epochs": 3})
    assert result.report["epochs_by_phase"]["dense"] == 0
    assert result.report["dense"]["accuracy"] == first.report["dense"]["accuracy"]
    assert result.report["trained_on"] == "train" and result.report["validation_clean"] is True
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    with pytest.warns(UserWarning, match="validation images"):
        seen = pb.compress(net, data, trained=True, max_drop=50.0, **{**short, "epochs": 3})
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


def test_weights_of_another_split_may_have_seen_the_validation_images(
    finished: tuple[Path, pb.Result], npz: Path, data: Data, short: dict[str, Any]
) -> None:
    settings = {**short, "epochs": 3, "weights": finished[0] / "dense.safetensors", "max_drop": 50.0}
    assert pb.compress("small_cnn", data, **settings).report["validation_clean"] is True
    with pytest.warns(UserWarning, match="have seen the validation images"):
        other = pb.compress("small_cnn", pb.load_data(npz, valid_fraction=0.3), **settings)
    assert other.report["validation_clean"] is False


def test_weights_that_were_trained_without_a_validation_part(npz: Path, short: dict[str, Any], tmp_path: Path) -> None:
    data = pb.load_data(npz, valid_fraction=0.0)
    pb.compress("small_cnn", data, target_macs=0.5, out=tmp_path / "run", **{**short, "epochs": 3})
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    assert pb.nets.load_weights(net, tmp_path / "run" / "dense.safetensors").trained_on == "all"


def test_a_likelihood_that_is_not_of_classes_is_refused_before_training(data: Data) -> None:
    with pytest.raises(pb.ConfigError, match="one class per image"):
        pb.compress("small_cnn", data, target_macs=0.5, likelihood=pb.likelihoods.Gaussian(), progress=False)


def test_from_scratch(finished: tuple[Path, pb.Result], data: Data, tmp_path: Path, short: dict[str, Any]) -> None:
    _, first = finished
    settings = {**short, "epochs": 3}
    result = pb.compress("small_cnn", data, from_scratch=first.plan, out=tmp_path / "control", **settings)
    report = result.report
    assert report["method"] == "from-scratch" and report["epochs_by_phase"] == {"dense": 0, "infer": 0, "tune": 3}
    assert report["rule"] == "plan" and not (tmp_path / "control" / "dense.safetensors").exists()
    assert report["compact"]["params"] == first.report["compact"]["params"]
    assert report["compact"]["widths"] == first.report["compact"]["widths"]
    for name, value in result.compact.named_parameters():
        assert not torch.equal(value, dict(first.compact.named_parameters())[name])
    assert pb.load_compact(tmp_path / "control").conv1.out_channels == len(first.plan.keep["conv1"])
