"""What a run costs beside its steps: copies of modules, bytes written, posteriors read back."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import pyrobnn as pb
from pyrobnn.io import files
from pyrobnn.pipeline import state as state_module

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short


@pytest.mark.slow
def test_a_run_copies_writes_and_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"copies": 0, "bytes": 0, "reads": 0, "inside": 0}
    deepcopy, write, read = copy.deepcopy, files.write_bytes, state_module.from_state

    def counted_copy(value: Any, *rest: Any) -> Any:
        if not isinstance(value, nn.Module) or found["inside"]:
            return deepcopy(value, *rest)
        found["copies"] += 1
        found["inside"] = 1
        try:
            return deepcopy(value, *rest)
        finally:
            found["inside"] = 0

    def counted_write(path: Any, data: Any) -> Path:
        found["bytes"] += len(data)
        return write(path, data)

    def counted_read(data: Any) -> Any:
        found["reads"] += 1
        return read(data)

    monkeypatch.setattr(copy, "deepcopy", counted_copy)
    for module in list(sys.modules.values()):
        if getattr(module, "write_bytes", None) is write:
            monkeypatch.setattr(module, "write_bytes", counted_write)
    monkeypatch.setattr(state_module, "from_state", counted_read)
    options: dict[str, Any] = {
        "max_drop": 1.0,
        "epochs": 12,
        "precision": "fp32",
        "progress": False,
        "out": tmp_path / "run",
    }
    report = pb.compress("small_cnn", "digits", "gaussian", **options).report
    assert len(report["rounds"]) >= 2
    assert found["copies"] <= 44  # 193 before; what is left are mostly the parts of a cut and the model of each fit
    assert found["bytes"] < 3_000_000
    assert found["reads"] == 0
    kept = sum(path.stat().st_size for path in (tmp_path / "run" / "stages").iterdir())
    assert kept < 1_000_000
