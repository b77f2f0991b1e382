"""A whole run on data that is read when it is needed, and on data of unusual kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Dark and bright pictures of two sizes."""
    rng = np.random.default_rng(0)
    for number in range(80):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        array = rng.integers(0, 100, (12, 12 + number % 3), dtype=np.uint8) + 100 * (number % 2)
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    return tmp_path


QUICK: dict[str, Any] = {"method": "l1", "target_macs": 0.6, "epochs": 3, "progress": False, "precision": "fp32"}


def test_a_run_on_a_streamed_folder_is_the_run_in_memory(folder: Path) -> None:
    settings = {
        "image_size": 8,
        "augment": "shift=1,flip",
        "batch_size": 16,
        "valid_fraction": 0.2,
        "workers": 0,
        **QUICK,
    }
    memory = pb.compress("small_cnn", folder, **settings)
    stream = pb.compress("small_cnn", folder, stream=True, **settings)
    assert memory.plan == stream.plan
    for one, other in zip(memory.compact.state_dict().values(), stream.compact.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for key in ("accuracy", "nll", "params"):
        assert memory.report["compact"][key] == stream.report["compact"][key]


def test_a_run_on_the_loaders_of_a_user() -> None:
    x, y = torch.randn(90, 1, 8, 8), torch.arange(90) % 3
    x[:, 0, 0, 0] += 6 * y
    dataset = TensorDataset(x, y)
    loaders = (DataLoader(dataset, 30, shuffle=True), DataLoader(dataset, 40), DataLoader(dataset, 45, shuffle=True))
    data = pb.load_data(loaders, stream=True)
    result = pb.compress("small_cnn", data, **{**QUICK, "epochs": 6})
    again = pb.compress("small_cnn", data, **{**QUICK, "epochs": 6})
    assert result.report["compact"]["accuracy"] == again.report["compact"]["accuracy"] > 0.5


@pytest.mark.parametrize("sides", [(16,), (6, 6, 6)])
def test_a_run_on_signals_and_volumes(sides: tuple[int, ...]) -> None:
    dims = len(sides)
    conv, pool = getattr(nn, f"Conv{dims}d"), getattr(nn, f"AdaptiveAvgPool{dims}d")
    norm = getattr(nn, f"BatchNorm{dims}d")
    net = nn.Sequential(
        conv(2, 8, 3), norm(8), nn.ReLU(), conv(8, 8, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(8, 3)
    )
    x, y = torch.randn(60, 2, *sides), torch.arange(60) % 3
    result = pb.compress(net, TensorDataset(x, y), trained=True, **QUICK)
    assert result.report["reduction"]["macs"] > 0.3 and result.compact(x).shape == (60, 3)
