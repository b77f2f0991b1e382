"""Targets of a source: which task they are for, and the tensor that the task needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.data.raw import IGNORED, as_float32
from pyrobnn.errors import DataError


def as_targets(array: Any, name: str, where: str, task: str | None, pixels: tuple[int, ...]) -> tuple[Tensor, str]:
    """The targets of one part, and the task they are for.

    Args:
        array: Classes ``[N]`` or ``[N, 1]`` (integers), classes per pixel ``[N, H, W]``, or floats.
        name, where: For messages.
        task: What they are for (see `Raw.task`); None to find out.
        pixels: ``(H, W)`` of the images.

    Raises:
        DataError: Nothing that the task can use, in one line.
    """
    found = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    kind = found.dtype.kind
    if kind not in "iufb":
        raise DataError(f"{where}: {name} expected integer labels, got {found.dtype}; use .astype('int64')")
    if task is None:
        task = _guess(found, name, where, pixels)
    if task == "regression":
        real = as_float32(found.astype(np.float64), f"{where}: {name}")
        if real.ndim == 0 or real.size == 0:
            raise DataError(f"{where}: {name} expected numbers of shape [N] or [N, D], got shape {real.shape}")
        return torch.from_numpy(real.reshape(len(real), -1)), task
    if task == "multilabel":
        if found.ndim != 2 or not np.isin(found, (0, 1)).all():
            raise DataError(f"{where}: {name} expected 0 or 1 for each label, of shape [N, K], got shape {found.shape}")
        return torch.from_numpy(found.astype(np.float32)), task
    if kind not in "iu":
        raise DataError(
            f"{where}: {name} expected integer labels, got {found.dtype}; use .astype('int64') for classes, "
            "or say task='regression'"
        )
    if task == "segmentation":
        if found.ndim == 4 and found.shape[1] == 1:
            found = found[:, 0]
        if found.shape[1:] != pixels:
            raise DataError(
                f"{where}: {name} expected a class per pixel, [N, {', '.join(map(str, pixels))}] as the images, got shape "
                f"{found.shape}"
            )
        return torch.from_numpy(_with_ignored(_in_range(found, name, where))), task
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise DataError(
            f"{where}: {name} expected labels of shape [N], got {found.shape}; one-hot labels become "
            "integers with .argmax(1) (for several labels per image say task='multilabel')"
        )
    if found.size and int(found.min()) < 0:
        raise DataError(f"{where}: {name} expected labels from 0, got {int(found.min())}; number the classes from 0")
    return torch.from_numpy(_in_range(found, name, where)), task


def _in_range(labels: np.ndarray, name: str, where: str) -> np.ndarray:
    if labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(
            f"{where}: {name} expected labels that fit 64 bits, got {int(labels.max())}; number the classes from 0"
        )
    return labels.astype(np.int64)


def _with_ignored(labels: np.ndarray) -> np.ndarray:
    """Negative classes and 255 (without a 254: then it is a class like others) become `IGNORED`."""
    void = labels < 0
    if not (labels == 254).any():
        void |= labels == 255
    return np.where(void, IGNORED, labels)


def _guess(found: np.ndarray, name: str, where: str, pixels: tuple[int, ...]) -> str:
    """What targets are for, from their type and shape alone."""
    if found.dtype.kind in "iu":
        per_pixel = found.ndim > 2 and found.shape[-len(pixels) :] == pixels
        return "segmentation" if per_pixel else "classification"
    if found.dtype.kind == "b" or (found.ndim == 2 and found.shape[1] > 1 and np.isin(found, (0, 1)).all()):
        raise DataError(
            f"{where}: {name} of 0 and 1 could be one-hot classes or several labels per image: "
            "use .argmax(1) for classes, or say task='multilabel'"
        )
    if found.ndim == 1 and (found == np.round(found)).all():  # whole numbers are more likely classes
        return "classification"
    return "regression"
