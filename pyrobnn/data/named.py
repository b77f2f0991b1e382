"""Data sets known by name: scikit-learn's digits, and torchvision's data sets, cached as ``.npz``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from pyrobnn.data.augment import Augment
from pyrobnn.data.npz import read_npz, write_npz
from pyrobnn.data.raw import Part, Raw
from pyrobnn.errors import DataError

_GREY = Augment(shift=2)
_COLOUR = Augment(shift=4, flip=True)

#: name: (class in torchvision.datasets, does it say split="train" instead of train=True, augmentation)
TORCHVISION: dict[str, tuple[str, bool, Augment]] = {
    "mnist": ("MNIST", False, Augment(shift=1)),  # digits are centred; small nets have no room to learn wider shifts
    "fashion_mnist": ("FashionMNIST", False, _GREY),
    "kmnist": ("KMNIST", False, _GREY),
    "usps": ("USPS", False, Augment(shift=1)),
    "cifar10": ("CIFAR10", False, _COLOUR),
    "cifar100": ("CIFAR100", False, _COLOUR),
    "svhn": ("SVHN", True, Augment(shift=2)),
    "stl10": ("STL10", True, Augment(shift=12, flip=True)),
}

#: What ``augment="auto"`` means. Digits fill their 8x8 pixels: shifts did not help there (tried).
AUGMENTATION: dict[str, Augment | None] = {"digits": None} | {name: entry[2] for name, entry in TORCHVISION.items()}

NAMES = ("digits", *TORCHVISION)


def cache_dir() -> Path:
    """``$PYROBNN_DATA``, or ``pyrobnn`` in the user's cache folder."""
    chosen = os.environ.get("PYROBNN_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("pyrobnn", appauthor=False, opinion=False)


def read_named(name: str) -> Raw:
    """Reads one of `NAMES`; fetches it through torchvision if it is not in `cache_dir` yet.

    Raises:
        DataError: It cannot be fetched, or the cached file is damaged.
    """
    if name == "digits":
        return _digits()
    path = cache_dir() / f"{name}.npz"
    if not path.exists():
        write_npz(path, _fetch(name, path))
    return read_npz(path)


def _digits() -> Raw:
    """1,797 digits of 8x8 pixels with 17 grey levels, which are spread over 0-255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    return Raw(Part(torch.from_numpy(pixels[:, None]), torch.from_numpy(bunch.target.astype(np.int64))))


def _fetch(name: str, path: Path) -> dict[str, np.ndarray]:
    import torchvision

    class_name, by_split, _ = TORCHVISION[name]
    factory = getattr(torchvision.datasets, class_name)
    arrays: dict[str, np.ndarray] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="pyrobnn-") as folder:
            for part in ("train", "test"):
                choice: dict[str, Any] = {"split": part} if by_split else {"train": part == "train"}
                dataset = factory(folder, download=True, **choice)
                arrays[f"x_{part}"] = np.stack([np.asarray(dataset[i][0]) for i in range(len(dataset))])
                arrays[f"y_{part}"] = np.array([int(dataset[i][1]) for i in range(len(dataset))])
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision raises RuntimeError too
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot fetch {name} ({reason}): connect to the internet, or put {path} there yourself, "
            "with x_train, y_train, x_test, y_test"
        ) from error
    return arrays
