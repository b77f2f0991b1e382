"""Ctrl-C, sent as a signal: while Python still imports, and in the middle of a run that then goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrobnn import cli
from pyrobnn.inference.fit import Loop
from pyrobnn.io.manifest import MANIFEST
from pyrobnn.report.report import steady

# Ctrl-C is pressed when this module is asked for.
IMPORT = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have been told to ignore it

class Press:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press())
sys.argv = ["pyrobnn", {command!r}]
from pyrobnn.__main__ import main
main()
"""


@pytest.mark.parametrize(("module", "command"), [("typer", "--help"), ("torch", "methods"), ("pyro", "methods")])
def test_while_importing(module: str, command: str) -> None:
    script = IMPORT.format(module=module, command=command)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 130, done
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 1
    assert "--resume" not in done.stderr  # there is nothing to go on with


def test_in_a_run(
    few_digits: Callable[[Path, int, int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line and exit code 130; `--resume` ends where a run that was left alone ends."""
    few_digits(tmp_path, 160, 60)

    def run(out: Path, *more: str) -> int:
        with pytest.raises(SystemExit) as stop:
            cli.main([
                "compress", "--model", "small_cnn", "--data", str(tmp_path / "few.npz"), "--method", "gaussian",
                "--epochs", "4", "--target-macs", "0.5", "--precision", "fp32", "--out", str(out), *more,
            ])  # fmt: skip
        return int(stop.value.code or 0)

    assert run(tmp_path / "whole") == 0
    steps, step = 0, Loop.train_step

    def pressed(self: Loop, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background may have to ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "train_step", pressed)
            capsys.readouterr()
            code = run(tmp_path / "stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    error = capsys.readouterr().err
    assert code == 130 and steps == 5 and "--resume" in error and "Traceback" not in error
    assert not (tmp_path / "stopped" / MANIFEST).exists() and not list((tmp_path / "stopped").rglob(".*"))
    assert run(tmp_path / "stopped", "--resume") == 0
    whole, stopped = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "stopped"))
    assert steady(whole) == steady(stopped)
    assert whole["threads"] == stopped["threads"] == torch.get_num_threads()
