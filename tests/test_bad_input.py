"""Bad input through the command line: exit code 2, one clear line, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pyrobnn as pb
from pyrobnn import cli
from pyrobnn.cli.console import err_console
from pyrobnn.io.manifest import write_manifest
from pyrobnn.nets import save_weights


@dataclass
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Runs the command line in this process."""
    monkeypatch.setattr(err_console, "width", 400, raising=False)

    def call(*arguments: Any) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        code = stop.value.code
        return Answer(code if isinstance(code, int) else 1, captured.out, captured.err)

    return call


def refused(answer: Answer, *words: str) -> None:
    """Exit code 2 and exactly one line that holds the words."""
    lines = answer.err.strip().splitlines()
    assert answer.code == 2, answer
    assert len(lines) == 1 and lines[0].startswith("error: "), answer.err
    assert "Traceback" not in answer.err + answer.out
    for word in words:
        assert word.lower() in lines[0].lower(), (word, lines[0])


def compress(
    run: Callable[..., Answer], out: Path, *more: Any, model: str = "small_cnn", data: Any = "digits"
) -> Answer:
    return run("compress", "--model", model, "--data", data, "--out", out, "--epochs", 3, "--method", "gaussian", *more)


def arrays(n: int = 60, **changes: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {
        "x_train": rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8),
        "y_train": np.arange(n) % 3,
        "x_test": rng.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8),
        "y_test": np.arange(12) % 3,
    }
    made.update(changes)
    return {key: value for key, value in made.items() if value is not None}


# Data

BAD_ARRAYS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a key is missing": ({"y_test": None}, ("x_train, y_train, x_test, y_test", "'y_test' is missing")),
    "float pixels": ({"x_train": np.zeros((60, 8, 8, 1))}, ("x_train", "uint8", "float64")),
    "float labels": ({"y_train": np.arange(60) % 3 * 1.0}, ("y_train", "integer", "float64")),
    "one-hot labels": ({"y_train": np.eye(3, dtype=int)[np.arange(60) % 3]}, ("y_train", "argmax")),
    "one class": ({"y_train": np.zeros(60, int), "y_test": np.zeros(12, int)}, ("two classes", "only label 0")),
    "a gap in the labels": ({"y_train": np.arange(60) % 3 * 2}, ("no gap", "label 1")),
    "negative labels": ({"y_train": np.arange(60) % 3 - 1}, ("from 0", "-1")),
    "test labels out of range": ({"y_test": np.arange(12) % 4}, ("test labels 0-2", "got 3")),
    "too few labels": ({"y_train": np.arange(59) % 3}, ("60 images", "59 labels")),
    "no images": ({"x_train": np.zeros((0, 8, 8, 1), np.uint8), "y_train": np.zeros(0, int)}, ("got none",)),
    "no test images": ({"x_test": np.zeros((0, 8, 8, 1), np.uint8), "y_test": np.zeros(0, int)}, ("got none",)),
    "test images of another size": ({"x_test": np.zeros((12, 9, 9, 1), np.uint8)}, ("test images", "9, 9")),
    "flat images": ({"x_train": np.zeros((60, 64), np.uint8)}, ("[N, H, W]", "(60, 64)")),
    "objects": ({"y_train": np.array([None] * 60)}, ("few.npz",)),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case: str, run: Callable[..., Answer], tmp_path: Path) -> None:
    changes, words = BAD_ARRAYS[case]
    np.savez(tmp_path / "few.npz", **arrays(**changes))
    refused(compress(run, tmp_path / "out", data=tmp_path / "few.npz"), *words)
    assert not (tmp_path / "out").exists()


def test_missing_and_unreadable_data(run: Callable[..., Answer], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(compress(run, out, data=tmp_path / "none.npz"), "none.npz", "not found")
    refused(compress(run, out, data="digitss"), "unknown data set 'digitss'", "did you mean digits")
    refused(compress(run, out, data="some/where"), "some/where", "not found")
    (tmp_path / "text.npz").write_text("not an archive")
    refused(compress(run, out, data=tmp_path / "text.npz"), "text.npz", "not a readable .npz")
    np.savez(tmp_path / "cut.npz", **arrays())
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused(compress(run, out, data=tmp_path / "cut.npz"), "cut.npz", "not a readable .npz")
    assert not out.exists()


def test_image_folders(run: Callable[..., Answer], tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    refused(compress(run, out, data=folder), "one sub-folder with images per class")
    (folder / "cat").mkdir()
    refused(compress(run, out, data=folder), "images")
    for k in range(4):
        Image.fromarray(np.full((8, 8), 40 * k, np.uint8)).save(folder / "cat" / f"{k}.png")
    refused(compress(run, out, data=folder), "two classes")
    (folder / "dog").mkdir()
    (folder / "dog" / "bad.png").write_bytes(b"no image")
    refused(compress(run, out, data=folder), "bad.png", "remove it")


def test_images_that_do_not_fit_the_net(run: Callable[..., Answer], tmp_path: Path) -> None:
    colour = np.zeros((60, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "colour.npz", **arrays(x_train=colour, x_test=colour[:12]))
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n\ndef grey():\n    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3),"
        " nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        answer = compress(run, tmp_path / "out", model="mynets:grey", data=tmp_path / "colour.npz")
        refused(answer, "images of 3x8x8 do not fit the net")
        refused(compress(run, tmp_path / "out", model="mynets:grey"), "10 outputs")
    refused(compress(run, tmp_path / "out", model="squeezenet1_0"), "3 channels", "got 1")
    np.savez(tmp_path / "tiny.npz", **arrays(x_train=colour[:, :2, :2, :1], x_test=colour[:12, :2, :2, :1]))
    refused(compress(run, tmp_path / "out", data=tmp_path / "tiny.npz"), "larger images")


# Networks and weights


def test_unknown_networks(run: Callable[..., Answer], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(compress(run, out, model="lenet4"), "unknown net 'lenet4'", "did you mean lenet5")
    refused(compress(run, out, model="no.such.module:net"), "cannot import 'no.such.module'")
    refused(compress(run, out, model="pyrobnn.nets:lenet6"), "no function or class 'lenet6'", "lenet5")
    refused(compress(run, out, model="pyrobnn.nets:BUILT_IN"), "BUILT_IN")
    assert not out.exists()


def test_weights_that_do_not_fit(run: Callable[..., Answer], tmp_path: Path) -> None:
    out, weights = tmp_path / "out", tmp_path / "w.safetensors"
    refused(compress(run, out, "--weights", weights), "w.safetensors", "not found")
    weights.write_bytes(b"garbage")
    refused(compress(run, out, "--weights", weights), "not a readable safetensors")
    save_weights(pb.nets.build("lenet5", in_channels=1, image_size=28), weights)
    refused(compress(run, out, "--weights", weights), "does not fit the net")
    save_weights(pb.nets.build("small_cnn", in_channels=1, image_size=8, num_classes=7), weights)
    refused(compress(run, out, "--weights", weights), "'fc2.", "expected shape (10", "got (7")
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    with torch.no_grad():
        net.conv1.weight[0] = float("nan")
    save_weights(net, weights)
    refused(compress(run, out, "--weights", weights), "'conv1.weight' holds NaN")
    save_weights(pb.nets.build("small_cnn", in_channels=1, image_size=8), weights, mean="a,b", std="1")
    refused(compress(run, out, "--weights", weights), "'mean' expected numbers")
    save_weights(pb.nets.build("small_cnn", in_channels=1, image_size=8), weights, mean=(0.1, 0.2), std=(1.0, 1.0))
    refused(compress(run, out, "--weights", weights), "1 means")
    assert not out.exists()


# Settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "gausian"), ("unknown method 'gausian'", "did you mean gaussian")),
        (("--method", "zzz"), ("unknown method 'zzz'", "known are", "gaussian")),
        (("--target-macs", "0"), ("--target-macs", "between 0 and 1", "got 0")),
        (("--target-macs", "1"), ("--target-macs", "between 0 and 1", "got 1")),
        (("--target-params", "1.5"), ("--target-params", "got 1.5")),
        (("--target-params", "-0.1"), ("--target-params", "got -0.1")),
        (("--target-macs", "nan"), ("--target-macs", "got nan")),
        (("--target-macs", "half"), ("invalid value for '--target-macs'", " valid ")),
        (("--target-macs", "0.000001"), ("cannot be met", "raise the target")),
        (("--target-macs", "0.2", "--min-channels", "14"), ("cannot be met", "min_channels=14")),
        (("--max-drop", "-1"), ("--max-drop", "percentage points", "got -1")),
        (("--max-drop", "101"), ("--max-drop", "got 101")),
        (("--epochs", "1"), ("--epochs", "at least 2", "got 1")),
        (("--epochs", "many"), ("--epochs", "integer")),
        (("--minutes", "2"), ("--epochs or --minutes",)),
        (("--min-channels", "0"), ("--min-channels", "got 0")),
        (("--round-to", "0"), ("--round-to", "got 0")),
        (("--estimator", "flipout"), ("--estimator", "'flipout'")),
        (("--precision", "fp8"), ("precision must be auto, fp32 or bf16", "'fp8'")),
        (("--device", "tpu"), ("device must be auto, cpu, cuda or mps", "'tpu'")),
        (("--protect", "nothing*"), ("nothing*",)),
        (("--from-scratch",), ("--from-scratch and --plan",)),
        (("--plan", "plan.json"), ("--from-scratch and --plan",)),
        (("--from-scratch", "--plan", "missing.json"), ("cannot read the plan missing.json",)),
        (("--no-such-option",), ("no-such-option",)),
    ],
)
def test_bad_settings(
    options: tuple[str, ...], words: tuple[str, ...], run: Callable[..., Answer], tmp_path: Path
) -> None:
    refused(compress(run, tmp_path / "out", *options), *words)
    assert not (tmp_path / "out").exists()


def test_a_device_this_machine_lacks(run: Callable[..., Answer], tmp_path: Path) -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    if missing == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has every device")
    refused(compress(run, tmp_path / "out", "--device", missing), missing, "not available", "--device auto")


def test_everything_protected(run: Callable[..., Answer], tmp_path: Path) -> None:
    refused(compress(run, tmp_path / "out", "--protect", "*"), "no channel of this network can be cut")


def test_a_plan_of_another_net(run: Callable[..., Answer], tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    pb.PruningPlan({"layer9": [0]}, {"layer9": 4}).save(plan)
    refused(compress(run, out, "--from-scratch", "--plan", plan), "'layer9'")
    pb.PruningPlan({"conv1": [0, 20]}, {"conv1": 24}).save(plan)
    refused(compress(run, out, "--from-scratch", "--plan", plan), "conv1", "16")
    refused(
        compress(run, out, "--from-scratch", "--plan", plan, "--target-macs", "0.5"),
        "--target-macs",
        "would do nothing",
    )
    plan.write_text('{"schema": 1, "keep": {"conv1": []}, "channels": {"conv1": 16}}')
    refused(compress(run, out, "--from-scratch", "--plan", plan), "keeps nothing of 'conv1'")
    plan.write_text("{")
    refused(compress(run, out, "--from-scratch", "--plan", plan), "not JSON")


def test_a_place_that_cannot_be_written(run: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(compress(run, tmp_path / "file" / "out"), "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_groups_of_what_cannot_be(run: Callable[..., Answer]) -> None:
    refused(
        run("groups", "--model", "small_cnn", "--data", "digits", "--classes", "3"), "--image and --classes", "--data"
    )
    refused(run("groups", "--model", "small_cnn", "--data", "digits", "--image", "1x8x8"), "--image and --classes")
    refused(run("groups", "--model", "small_cnn", "--classes", "-3"), "--classes", "-3")


def test_evaluate_with_images_of_another_size(run: Callable[..., Answer], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compress(run, out, "--target-macs", "0.6").code == 0
    larger = {"x_train": np.zeros((60, 12, 12, 1), np.uint8), "x_test": np.zeros((12, 12, 12, 1), np.uint8)}
    np.savez(tmp_path / "few.npz", **arrays(**larger))
    refused(run("evaluate", out, "--data", tmp_path / "few.npz"), "12")
    (out / "posterior.nc").write_bytes(b"damaged")
    refused(run("inspect", out), "posterior.nc", "damaged or was edited")


def test_missing_arguments(run: Callable[..., Answer]) -> None:
    refused(run("compress", "--data", "digits", "--out", "x"), "--model")
    refused(run("compres"), "compres")
    refused(run("evaluate"), "run")


@pytest.mark.parametrize("image", ["32", "3x32", "3xAx32", "0x8x8", "3x-1x8", "axbxc"])
def test_bad_image_sizes(image: str, run: Callable[..., Answer]) -> None:
    refused(run("groups", "--model", "small_cnn", "--image", image), "--image", image)


def test_groups_of_what_does_not_fit(run: Callable[..., Answer]) -> None:
    refused(run("groups", "--model", "lenet4"), "did you mean lenet5")
    refused(run("groups", "--model", "small_cnn", "--image", "1x2x2"), "larger images")
    refused(run("groups", "--model", "small_cnn", "--data", "nodata"), "nodata")
    refused(run("groups", "--model", "small_cnn", "--image", "1x8x8", "--classes", "0"), "classes")


# Run directories


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, few_digits: Callable[[Path, int, int], Path]) -> Path:
    """A small finished run, and the data it was made from."""
    folder = few_digits(tmp_path_factory.mktemp("made"), 150, 80)
    pb.compress(
        "small_cnn", folder / "few.npz", "gaussian", target_macs=0.5, epochs=3, out=folder / "run", progress=False
    )
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def again(run: Callable[..., Answer], made: Path, out: Path, *more: Any, **options: Any) -> Answer:
    return compress(run, out, "--target-macs", 0.5, *more, data=made / "few.npz", **options)


def test_another_run_is_not_overwritten(run: Callable[..., Answer], made: Path, copy: Path) -> None:
    before = contents(copy)
    refused(again(run, made, copy), "holds another run", "--resume")
    refused(again(run, made, copy, "--resume", "--seed", 5), "seed")
    refused(again(run, made, copy, "--resume", "--target-macs", 0.4), "target_macs")
    refused(compress(run, copy, "--target-macs", 0.5, "--resume"), "data=")
    assert contents(copy) == before


def test_somebody_elses_files_stay(run: Callable[..., Answer], made: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "report.json").write_text("my own notes")
    (out / "thesis.tex").write_text("years of work")
    before = contents(out)
    refused(again(run, made, out), "holds")
    refused(again(run, made, out, "--resume"), "checkpoint")
    (tmp_path / "file").write_text("a file")
    refused(again(run, made, tmp_path / "file"), "is a file")
    assert contents(out) == before and (tmp_path / "file").read_text() == "a file"


def test_damaged_checkpoints(run: Callable[..., Answer], made: Path, copy: Path) -> None:
    path = copy / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(damaged)
        before = contents(copy)
        refused(again(run, made, copy, "--resume"), "checkpoint.pt", "damaged")
        assert contents(copy) == before
    torch.save({"something": 1}, path)
    refused(again(run, made, copy, "--resume"), "not the checkpoint of a run")
    torch.save([1, 2], path)
    refused(again(run, made, copy, "--resume"), "no state dict")


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_no_run_there(command: str, run: Callable[..., Answer], tmp_path: Path) -> None:
    refused(run(command, tmp_path / "nowhere"), "report.json not found", "pyrobnn compress")
    (tmp_path / "report.json").write_text('{"schema": 1')
    refused(run(command, tmp_path), "report.json is damaged")
    (tmp_path / "report.json").write_text("[]")
    refused(run(command, tmp_path), "report.json is damaged")
    (tmp_path / "report.json").write_text("{}")
    refused(run(command, tmp_path))


@pytest.mark.parametrize("listed", [True, False])
def test_damaged_run_files(listed: bool, run: Callable[..., Answer], copy: Path) -> None:
    if not listed:  # what is in a file is checked too
        (copy / "manifest.json").unlink()
    saved = contents(copy)
    weights, description, report = copy / "compact.safetensors", copy / "compact.json", copy / "report.json"
    for damaged in (saved["compact.safetensors"][:100], b"", saved["compact.safetensors"][:-50]):
        weights.write_bytes(damaged)
        refused(run("evaluate", copy), "compact.safetensors")
    weights.unlink()
    refused(run("evaluate", copy), "compact.safetensors", "not found")
    weights.write_bytes(saved["compact.safetensors"])
    text = json.loads(saved["compact.json"])
    description.write_text("{")
    refused(run("evaluate", copy), "compact.json is damaged")
    description.write_text("{}")
    refused(run("evaluate", copy), "compact.json")
    for spec in ({"model": "lenet5", "kwargs": {}}, {"model": "nonet", "kwargs": {}}, {"model": 3}):
        description.write_text(json.dumps({**text, "spec": spec}))
        refused(run("evaluate", copy))
    description.write_text(json.dumps({**text, "mean": [0.1, 0.2]}))
    refused(run("evaluate", copy))
    description.write_bytes(saved["compact.json"])
    report.write_text(json.dumps({"data": "nodata"}))
    refused(run("evaluate", copy))


def test_evaluate_when_the_data_has_moved(run: Callable[..., Answer], copy: Path) -> None:
    report = json.loads((copy / "report.json").read_text())
    gone = str(copy.parent / "gone.npz")
    (copy / "report.json").write_text(json.dumps({**report, "data": gone}))
    write_manifest(copy)
    refused(run("evaluate", copy), "gone.npz", "not found")
    assert run("evaluate", copy, "--data", report["data"]).code == 0
