"""The commands, from the outside."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pyrobnn as pb
from pyrobnn import cli
from pyrobnn.cli.console import err_console, out_console
from pyrobnn.io.manifest import write_manifest
from pyrobnn.methods.registry import METHODS

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs the command line in this process: exit code, stdout, stderr."""
    for console in (out_console, err_console):
        monkeypatch.setattr(console, "width", 300, raising=False)

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, few_digits: Callable[[Path, int, int], Path]) -> Path:
    """A folder with data and one run, made through the command line."""
    folder = few_digits(tmp_path_factory.mktemp("cli"), 240, 120)
    with pytest.raises(SystemExit) as stop:
        cli.main([
            "compress", "--model", "small_cnn", "--data", str(folder / "few.npz"), "--method", "gaussian", "--epochs", "4",
            "--target-macs", "0.4", "--precision", "fp32", "--out", str(folder / "run"),
        ])  # fmt: skip
    assert stop.value.code == 0
    return folder


@pytest.fixture
def run_dir(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def test_compress_prints_what_it_measured(made: Path, call: Call, tmp_path: Path) -> None:
    code, out, err = call(
        "compress", "--model", "small_cnn", "--data", made / "few.npz", "--method", "gaussian", "--epochs", 3,
        "--target-params", 0.5, "--out", tmp_path / "run",
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert code == 0 and "Traceback" not in err
    for word in ("test accuracy", "MACs", "parameters", f"{report['compact']['params']:,}", "report.json"):
        assert word in out
    assert f"{100 * report['compact']['accuracy']:.2f} %" in out


def test_evaluate_agrees_with_the_report(made: Path, call: Call) -> None:
    before = {p: p.read_bytes() for p in (made / "run").rglob("*") if p.is_file()}
    code, out, err = call("evaluate", made / "run")
    assert code == 0 and err == ""
    assert "accuracy" in out and "the same" in out
    assert {p: p.read_bytes() for p in (made / "run").rglob("*") if p.is_file()} == before


TAMPERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "accuracy": lambda c: c.update(accuracy=c["accuracy"] + 0.01),
    "nll": lambda c: c.update(nll=c["nll"] * 1.01),
    "ece": lambda c: c.update(ece=c["ece"] + 0.01),
    "params": lambda c: c.update(params=c["params"] - 1),
    "nonzero_params": lambda c: c.update(nonzero_params=c["nonzero_params"] - 1),
    "macs": lambda c: c.update(macs=c["macs"] - 1),
    "bytes": lambda c: c.update(bytes=c["bytes"] - 1),
    "widths": lambda c: c["widths"].update(conv1=c["widths"]["conv1"] + 1),
}


@pytest.mark.parametrize("key", TAMPERED)
def test_evaluate_finds_a_changed_report(key: str, run_dir: Path, call: Call) -> None:
    report = json.loads((run_dir / "report.json").read_text())
    TAMPERED[key](report["compact"])
    (run_dir / "report.json").write_text(json.dumps(report))
    code, _, err = call("evaluate", run_dir)
    assert code == 2 and "report.json is damaged or was edited" in err
    write_manifest(run_dir)
    code, _, err = call("evaluate", run_dir)
    assert code == 1 and f"figures differ: {key}" in err


def test_evaluate_finds_changed_weights(run_dir: Path, call: Call) -> None:
    path = run_dir / "compact.safetensors"
    tensors = load_file(path)
    tensors["fc2.weight"] = torch.zeros_like(tensors["fc2.weight"])
    save_file(tensors, path)
    code, _, err = call("evaluate", run_dir)
    assert code == 2 and "compact.safetensors is damaged or was edited" in err
    write_manifest(run_dir)
    code, _, err = call("evaluate", run_dir)
    assert code == 1 and "accuracy" in err and "nonzero_params" in err


def test_latency_and_versions_may_differ(run_dir: Path, call: Call) -> None:
    report = json.loads((run_dir / "report.json").read_text())
    report["compact"]["latency_ms"] *= 100
    report["versions"]["torch"] = "1.0"
    (run_dir / "report.json").write_text(json.dumps(report))
    write_manifest(run_dir)
    assert call("evaluate", run_dir)[0] == 0


def test_inspect(made: Path, call: Call, tmp_path: Path) -> None:
    code, out, err = call("inspect", made / "run")
    report = json.loads((made / "run" / "report.json").read_text())
    assert code == 0 and err == ""
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") > 4}
    for group, width in report["compact"]["widths"].items():
        cells = [cell.strip() for cell in lines[group].split("│")]
        assert cells[3] == str(report["dense"]["widths"][group]) and cells[4] == str(width)
    code, out, _ = call("inspect", made / "run", "--out", tmp_path / "plots")
    pictures = list((tmp_path / "plots").glob("*.png"))
    assert code == 0 and pictures and all(p.stat().st_size > 1000 for p in pictures)


def test_inspect_of_a_control_says_why_not(made: Path, call: Call, tmp_path: Path) -> None:
    code, _, _ = call(
        "compress", "--model", "small_cnn", "--data", made / "few.npz", "--from-scratch", "--plan",
        made / "run" / "plan.json", "--epochs", 2, "--out", tmp_path / "control",
    )  # fmt: skip
    report = json.loads((tmp_path / "control" / "report.json").read_text())
    first = json.loads((made / "run" / "report.json").read_text())
    assert code == 0 and report["method"] == "from-scratch"
    for key in ("params", "macs", "widths"):
        assert report["compact"][key] == first["compact"][key]
    assert call("evaluate", tmp_path / "control")[0] == 0
    code, _, err = call("inspect", tmp_path / "control")
    assert code == 2 and "no posterior" in err and len(err.strip().splitlines()) == 1


def test_resume_of_a_finished_run(run_dir: Path, made: Path, call: Call) -> None:
    (run_dir / "report.json").unlink()  # as if it had been killed while writing the files
    code, _, _ = call(
        "compress", "--model", "small_cnn", "--data", made / "few.npz", "--method", "gaussian", "--epochs", 4,
        "--target-macs", 0.4, "--precision", "fp32", "--out", run_dir, "--resume",
    )  # fmt: skip
    assert code == 0
    again, first = (json.loads((p / "report.json").read_text()) for p in (run_dir, made / "run"))
    for volatile in ("seconds", "versions"):
        again.pop(volatile), first.pop(volatile)
    for report in (again, first):
        report["dense"].pop("latency_ms"), report["compact"].pop("latency_ms")
    assert again == first


def test_minutes(made: Path, call: Call, tmp_path: Path) -> None:
    code, _, _ = call(
        "compress", "--model", "small_cnn", "--data", made / "few.npz", "--method", "gaussian", "--minutes", 0.04,
        "--target-macs", 0.5, "--out", tmp_path / "run",
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert code == 0 and report["epochs"] >= 2 and report["seconds"] < 60


def test_groups(call: Call) -> None:
    code, out, err = call("groups", "--model", "small_cnn", "--data", "digits")
    assert code == 0 and err == ""
    for word in ("conv1", "conv2", "fc1", "13,754 parameters", "1x8x8"):
        assert word in out
    assert "fc2" in out and "cannot cut" in out
    by_image = call("groups", "--model", "small_cnn", "--image", "1x8x8", "--classes", 10)[1]
    assert by_image == out
    protected = call("groups", "--model", "small_cnn", "--protect", "conv*")[1]
    assert "cannot cut conv1" in protected and "cannot cut conv2" in protected


def test_groups_of_a_residual_net(call: Call) -> None:
    code, out, _ = call("groups", "--model", "resnet20", "--image", "3x16x16")
    assert code == 0 and "layer1.0.conv1" in out


def test_methods(call: Call) -> None:
    code, out, _ = call("methods")
    assert code == 0 and METHODS
    for name, method in METHODS.items():
        assert name == method.name and name in out


def test_help_and_no_arguments(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0 and all(name in out for name in ("compress", "groups", "evaluate", "inspect", "methods"))
    assert call("compress", "--help")[0] == 0


def test_a_warning_is_one_line(made: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in load_file(made / "run" / "dense.safetensors").items()}, weights)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = call(
            "compress", "--model", "small_cnn", "--data", made / "few.npz", "--weights", weights, "--max-drop", 50,
            "--method", "gaussian", "--epochs", 3, "--out", tmp_path / "run",
        )  # fmt: skip
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("warning:")]
    assert len(lines) == 1 and "validation images" in lines[0]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["validation_clean"] is False and report["trained_on"] == "all"


HEAVY = ("torch", "pyro", "torchvision", "arviz", "xarray", "matplotlib", "sklearn")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["compress", "--help"], ["compres"], ["groups", "--modle", "x"]]
)
def test_help_version_and_typos_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from pyrobnn.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as stop:\n"
        f"    print([name for name in {HEAVY!r} if name in sys.modules], stop.code)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = 0 if {"--help", "--version"} & set(arguments) else 2
    assert done.stdout.splitlines()[-1] == f"[] {code}"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_version(call: Call) -> None:
    assert call("--version")[:2] == (0, f"pyrobnn {pb.__version__}\n")


def test_a_network_from_a_file_anywhere(
    made: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab").mkdir()
    net = tmp_path / "lab" / "mynet.py"
    net.write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path / "lab")
    code, _, err = call(
        "compress", "--model", "mynet.py:make", "--data", made / "few.npz", "--method", "l1", "--epochs", 3,
        "--target-macs", 0.6, "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    monkeypatch.chdir(tmp_path)  # from another folder
    code, _, err = call("evaluate", tmp_path / "run")
    assert code == 2 and "mynet.py:make" in err and "--model" in err
    assert call("evaluate", tmp_path / "run", "--model", f"{net}:make")[0] == 0


def test_export(made: Path, call: Call, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in (made / "run").rglob("*") if p.is_file()}
    code, out, _ = call("export", made / "run", "--format", "torch", "--normalise", "--out", tmp_path / "small.pt2")
    size = (tmp_path / "small.pt2").stat().st_size
    assert code == 0 and "small.pt2: torch.export" in out and f"{size:,} bytes" in out and "ms an image" in out
    pixels = pb.load_data(made / "few.npz").test.images.float() / 255
    with torch.no_grad():
        expected = pb.load_compact(made / "run", normalise=True)(pixels)
        torch.testing.assert_close(
            torch.export.load(tmp_path / "small.pt2").module()(pixels), expected, atol=1e-4, rtol=0
        )
    assert call("export", made / "run", "--format", "tflite")[0] == 2
    assert {p: p.read_bytes() for p in (made / "run").rglob("*") if p.is_file()} == before
