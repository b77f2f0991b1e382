"""What a run costs beside its steps: copies of modules, bytes written, posteriors read back."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import pyrobnn as pb
from pyrobnn.io import files
from pyrobnn.pipeline import store as store_module
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.store import RunStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short


@pytest.mark.slow
def test_a_run_copies_writes_and_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Counter[str] = Counter()
    reads: Counter[int] = Counter()
    deepcopy, write, from_data, read = copy.deepcopy, files.write_bytes, store_module.from_data, RunStore._read
    train = Context.train_plain

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

    def counted_state(*arguments: Any) -> Any:
        found["states"] += 1
        return from_data(*arguments)

    def counted_read(self: RunStore, number: int) -> Any:
        reads[number] += 1
        return read(self, number)

    def stopped(self: Context, stage: str, *rest: Any, **options: Any) -> nn.Module:
        if stage.startswith("attempt"):
            raise KeyboardInterrupt
        return train(self, stage, *rest, **options)

    monkeypatch.setattr(copy, "deepcopy", counted_copy)
    for module in list(sys.modules.values()):
        if getattr(module, "write_bytes", None) is write:
            monkeypatch.setattr(module, "write_bytes", counted_write)
    monkeypatch.setattr(store_module, "from_data", counted_state)
    monkeypatch.setattr(RunStore, "_read", counted_read)
    options: dict[str, Any] = {"max_drop": 1.0, "epochs": 12, "precision": "fp32", "progress": False}

    report = pb.compress("small_cnn", "digits", "gaussian", **options, out=tmp_path / "run").report
    assert len(report["rounds"]) >= 2
    assert found["copies"] <= 20
    assert found["bytes"] < 3_000_000
    assert found["states"] == 0
    kept = sum(path.stat().st_size for path in (tmp_path / "run" / "stages").iterdir())
    assert kept < 1_000_000

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Context, "train_plain", stopped)
        pb.compress("small_cnn", "digits", "gaussian", **options, out=tmp_path / "stopped")
    assert found["states"] == 0
    again = pb.compress("small_cnn", "digits", "gaussian", **options, out=tmp_path / "stopped", resume=True).report
    assert found["states"] == sum(reads.values()) and max(reads.values()) == 1
    assert again["compact"]["widths"] == report["compact"]["widths"]
