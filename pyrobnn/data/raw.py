"""Arrays as a source gives them, and the checks that every source must pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.errors import DataError

#: Channel counts that tell a channel axis from a height or width.
COMMON_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, eq=False)
class Raw:
    """Training and, if the source has them, test images (``[N, C, H, W]``) with labels (``[N]`` int64)."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor | None = None
    y_test: Tensor | None = None


def as_images(array: Any, name: str, where: str) -> Tensor:
    """Images ``[N, C, H, W]`` from a numpy array (NHW, NHWC, or NCHW when unambiguous).

    Raises:
        DataError: Not uint8, not images, or a layout that could be read in two ways.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8:
        hint = "convert them with .astype('uint8')"
        if array.dtype.kind == "f":
            hint = "pixels in 0-1 become uint8 with (x * 255).round().astype('uint8')"
        raise DataError(f"{where}: {name} expected uint8 pixels 0-255, got {array.dtype}; {hint}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        array = array if _channels_first(array.shape, name, where) else array.transpose(0, 3, 1, 2)
    else:
        raise DataError(
            f"{where}: {name} expected images [N, H, W] or [N, H, W, C], got shape {array.shape}; reshape it"
        )
    return torch.from_numpy(np.ascontiguousarray(array))


def _channels_first(shape: tuple[int, ...], name: str, where: str) -> bool:
    _, first, middle, last = shape
    first_fits, last_fits = first in COMMON_CHANNELS, last in COMMON_CHANNELS
    if first_fits == last_fits:  # the count does not tell: a square height and width may
        last_fits, first_fits = first == middle, middle == last
    if last_fits:  # NHWC is the convention, so it wins if even that does not tell
        return False
    if first_fits:
        return True
    raise DataError(f"{where}: {name} of shape {shape} could be NHWC or NCHW; save it as NHWC")


def as_labels(array: Any, name: str, where: str) -> Tensor:
    """Labels ``[N]`` int64 from integers ``[N]`` or ``[N, 1]``.

    Raises:
        DataError: Not integers, one-hot, or negative.
    """
    labels = np.asarray(array)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{where}: {name} expected labels of shape [N], got {labels.shape}; one-hot labels become "
            "integers with .argmax(1)"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: {name} expected integer labels, got {labels.dtype}; use .astype('int64')")
    if len(labels) and int(labels.min()) < 0:
        raise DataError(
            f"{where}: {name} expected labels from 0, got {int(labels.min())}; number the classes from 0"
        )
    return torch.from_numpy(labels.astype(np.int64))


def check(raw: Raw, where: str) -> int:
    """Checks that images, labels and the two parts fit each other.

    Returns:
        The number of classes.

    Raises:
        DataError: What does not fit, in one line.
    """
    for part, images, labels in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
        if images is None or labels is None:
            continue
        if len(images) != len(labels):
            raise DataError(
                f"{where}: {part} expected one label per image, got {len(images)} images and "
                f"{len(labels)} labels"
            )
        if len(images) == 0 or images.numel() == 0:
            raise DataError(f"{where}: expected {part} images, got none (shape {tuple(images.shape)})")
    classes = raw.y_train.unique()
    count = int(classes[-1]) + 1
    if len(classes) == 1:
        raise DataError(
            f"{where}: expected at least two classes, got only label {int(classes[0])} in the training part"
        )
    if len(classes) < count:
        present = torch.zeros(count, dtype=torch.bool)
        present[classes] = True
        absent = int((~present).nonzero()[0])
        raise DataError(
            f"{where}: expected labels 0-{count - 1} with no gap, got no training image with label {absent};"
            " number the classes from 0"
        )
    if raw.x_test is not None and raw.y_test is not None:
        if raw.x_test.shape[1:] != raw.x_train.shape[1:]:
            raise DataError(
                f"{where}: expected test images like the training images, [C, H, W] = "
                f"{list(raw.x_train.shape[1:])}, got {list(raw.x_test.shape[1:])}"
            )
        if int(raw.y_test.max()) >= count:
            raise DataError(
                f"{where}: expected test labels 0-{count - 1} as in the training part, "
                f"got {int(raw.y_test.max())}"
            )
    return count
