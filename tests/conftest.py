"""What all tests share: fixed seeds, an empty parameter store, and the way to real data."""

from __future__ import annotations

import os
from pathlib import Path

import pyro
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    """Every test starts from the same random state and an empty global parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """The folder with mnist.npz and cifar10.npz; the test is skipped where there is none."""
    folder = Path(os.environ.get("PYROBNN_DATA", "")).expanduser()
    missing = [name for name in ("mnist.npz", "cifar10.npz") if not (folder / name).is_file()]
    if "PYROBNN_DATA" not in os.environ or missing:
        pytest.skip("needs PYROBNN_DATA, a folder with mnist.npz and cifar10.npz")
    return folder


@pytest.fixture
def shared_weights(shared_data: Path) -> Path:
    """The folder ``weights`` beside the data, with the trained CIFAR-10 networks."""
    folder = shared_data.resolve().parent / "weights"
    if not (folder / "resnet20_cifar10.safetensors").is_file():
        pytest.skip(f"needs trained networks in {folder.name}/ beside PYROBNN_DATA")
    return folder
