"""Safetensors in memory: equal content is equal bytes, and headers are read without the tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pyrobnn.errors import CheckpointError
from pyrobnn.io.container import from_bytes, read_header, to_bytes

METADATA = {"std": "0.5", "mean": "0.25", "trained_on": "train", "what": 'ü "quoted" \n'}
HASH = """
import hashlib, torch
from pyrobnn.io.container import to_bytes
print(hashlib.sha256(to_bytes({"w": torch.arange(6.0)}, {str(k): "v" for k in range(20)})).hexdigest())
"""


def test_the_library_reads_it(tmp_path: Path) -> None:
    tied = torch.randn(3, 4)
    state = {"b": tied, "a": tied, "t": torch.randn(5, 4).T, "n": torch.tensor(3), "e": torch.zeros(0, 2)}
    (tmp_path / "x").write_bytes(to_bytes(state, METADATA))
    loaded = load_file(tmp_path / "x")
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], value) for name, value in state.items())
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata() == METADATA
    shapes, metadata = read_header(to_bytes(state, METADATA), "x")
    assert metadata == METADATA and shapes == {name: tuple(value.shape) for name, value in state.items()}
    save_file({"w": tied}, tmp_path / "plain")
    assert read_header((tmp_path / "plain").read_bytes(), "plain") == ({"w": (3, 4)}, {})


@pytest.mark.slow
def test_equal_content_is_equal_bytes_in_every_process() -> None:
    said = {
        subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(said) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        b"\x02" + b"\0" * 7 + b"[]",
        b"\x02" + b"\0" * 7 + b"{",
        (10**5).to_bytes(8, "little") + b"[" * 10**5,
    ],
)
def test_what_is_no_such_file(data: bytes) -> None:
    for read in (read_header, from_bytes):
        with pytest.raises(CheckpointError, match=r"^a/b is damaged, or not a readable safetensors file") as raised:
            read(data, "a/b")
        assert len(str(raised.value).splitlines()) == 1
