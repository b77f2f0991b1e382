"""Compact networks on disk: compressed where it pays, plain where it does not, the same either way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pyrobnn.io.sparse import load_sparse
from pyrobnn.nets import read_weights, save_weights
from pyrobnn.nets.storage import save_compact, stored_bytes
from pyrobnn.nets.weights import load_weights

ABOUT = {"mean": (0.1, 0.2), "std": (0.3, 0.4), "trained_on": "train"}


def net(density: float) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(512, 100))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape) < density)
    return module


@pytest.mark.parametrize("density", [0.02, 0.3])
def test_zeros_make_the_file_smaller(density: float, tmp_path: Path) -> None:
    module = net(density)
    save_compact(module, tmp_path / "small.safetensors", **ABOUT)
    save_weights(module, tmp_path / "plain.safetensors", **ABOUT)
    small, plain = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "plain"))
    assert small < (density + 0.1) * plain
    assert stored_bytes(module, **ABOUT) == small
    tensors, metadata = read_weights(tmp_path / "small.safetensors")
    expected, same = read_weights(tmp_path / "plain.safetensors")
    assert metadata == same and tensors.keys() == expected.keys() == load_sparse(tmp_path / "small.safetensors").keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    other = net(1.0)
    info = load_weights(other, tmp_path / "small.safetensors")
    assert info.mean == (0.1, 0.2) and info.trained_on == "train"
    assert torch.equal(other(torch.ones(2, 3, 6, 6)), module(torch.ones(2, 3, 6, 6)))


def test_without_zeros_worth_it_the_file_is_plain(tmp_path: Path) -> None:
    for density in (1.0, 0.97):
        module = net(density)
        path = tmp_path / f"{density}.safetensors"
        save_compact(module, path, **ABOUT)
        assert load_file(path).keys() == module.state_dict().keys()
        assert stored_bytes(module, **ABOUT) == path.stat().st_size
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
