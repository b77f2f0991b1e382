"""Images and targets as a source returns them, and the checks that every source must pass."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.data.notes import Notes
from pyrobnn.data.pictures import bits_to_drop, eight_bits
from pyrobnn.errors import DataError

if TYPE_CHECKING:
    from pyrobnn.data.inputs import Packing
    from pyrobnn.data.stream import StreamedImages

#: Channel counts that tell a channel axis from a height or width.
COMMON_CHANNELS = (1, 3, 4)
#: What stands in segmentation targets for pixels that count nowhere (the default of torch's cross-entropy).
IGNORED = -100
#: The largest class of the training part may have so many times the images of the smallest without a warning.
IMBALANCE = 10


@dataclass(frozen=True, eq=False)
class Part:
    """Images ``[N, C, H, W]`` with one target each: classes ``[N]`` int64, or see `Raw.task`."""

    images: Tensor | StreamedImages
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Raw:
    """What a source has: training images and, if it has them, validation and test images.

    Attributes:
        train, valid, test: The parts.
        classes: Names of the classes, where the source has names.
        task: What the targets are: ``"classification"`` (one class per image), ``"regression"`` (floats ``[N, D]``),
            ``"multilabel"`` (``[N, K]`` of 0 and 1, float32) or ``"segmentation"`` (classes ``[N, H, W]``, `IGNORED` where a pixel
            has none).
        resized: How images were made alike, in words for people.
        packing: How several inputs lie in vectors.
    """

    train: Part
    valid: Part | None = None
    test: Part | None = None
    classes: tuple[str, ...] = ()
    task: str = "classification"
    resized: str = ""
    packing: Packing | None = None

    def parts(self) -> list[tuple[str, Part]]:
        """The parts that are there, with their names."""
        named = (("train", self.train), ("validation", self.valid), ("test", self.test))
        return [(name, part) for name, part in named if part is not None]


def as_pixels(array: Any, name: str, where: str, notes: Notes, *, floats: bool = False) -> np.ndarray:
    """Images ``[N, C, H, W]`` of uint8, uint16 or float32 from a numpy array (NHW, NHWC, or NCHW when unambiguous).

    Args:
        array: The images; boolean ones are black and white.
        name, where: For messages.
        notes: Gets a remark where the layout is a guess.
        floats: Whether floats are taken, as they are.

    Raises:
        DataError: Another type, not images, or a layout that could be read in two ways.
    """
    array = np.asarray(array)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype.kind == "f" and floats:
        array = as_float32(array, f"{where}: {name}")
    elif array.dtype not in (np.uint8, np.uint16):
        hint = "convert them with .astype('uint8')"
        if array.dtype.kind == "f":
            hint = "pixels in 0-1 become uint8 with (x * 255).round().astype('uint8')"
        elif array.dtype.kind in "iu" and array.size and not 0 <= int(array.min()) <= int(array.max()) <= 255:
            hint = "pixels of up to 16 bits can be given as .astype('uint16')"
        raise DataError(f"{where}: {name} expected uint8 pixels 0-255, got {array.dtype}; {hint}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        first = is_channels_first(array.shape[1:], f"{where}: {name} of shape {array.shape}", notes)
        array = array if first else array.transpose(0, 3, 1, 2)
    else:
        raise DataError(
            f"{where}: {name} expected images [N, H, W] or [N, H, W, C], got shape {array.shape}; reshape it"
        )
    return np.ascontiguousarray(array)


def as_float32(array: np.ndarray, what: str) -> np.ndarray:
    """Floats in single precision.

    Raises:
        DataError: NaN, infinity, or values that single precision cannot hold.
    """
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single).all():
        raise DataError(f"{what}: expected finite pixels of single precision, got NaN, infinity or beyond 3e38")
    return single


def is_channels_first(shape: tuple[int, ...], what: str, notes: Notes) -> bool:
    """Whether numpy pictures of this shape (without the batch axis) are ``[C, H, W]`` and not ``[H, W, C]``.

    Raises:
        DataError: It cannot be told.
    """
    first, middle, last = shape
    first_fits, last_fits = first in COMMON_CHANNELS, last in COMMON_CHANNELS
    if first_fits == last_fits:  # the count does not tell: a square height and width may
        square_last, square_first = first == middle, middle == last
        if last_fits and square_last == square_first and (first == 4) != (last == 4):  # three or one sooner than four
            last_fits, first_fits = first == 4, last == 4
        elif square_last or square_first:
            last_fits, first_fits = square_last, square_first
    if last_fits and first_fits:
        notes.add("pictures that could be [H, W, C] or [C, H, W] are read as [H, W, C]", what)
    if last_fits:  # the convention of numpy pictures
        return False
    if first_fits:
        return True
    raise DataError(f"{what} could be NHWC or NCHW; save it as NHWC")


def joined_bits(arrays: dict[str, np.ndarray], notes: Notes) -> dict[str, Tensor]:
    """All parts of a source as tensors; pixels of 16 bits become 8, by the largest of all parts."""
    deep = [array for array in arrays.values() if array.dtype == np.uint16]
    drop = (
        bits_to_drop(max(int(array.max()) for array in deep if array.size), notes) if any(a.size for a in deep) else 0
    )
    return {name: torch.from_numpy(eight_bits(array, drop)) for name, array in arrays.items()}


def check(raw: Raw, where: str) -> int:
    """Checks that images, targets and the parts fit each other; warns about classes of very different size.

    Returns:
        The number of outputs that a network needs: classes, labels per image, or numbers per image.

    Raises:
        DataError: What does not fit, in one line.
    """
    first = raw.train
    for name, part in raw.parts():
        if len(part.images) != len(part.targets):
            raise DataError(
                f"{where}: {name} expected one label per image, got {len(part.images)} images and "
                f"{len(part.targets)} labels"
            )
        shape = tuple(part.images.shape)
        if 0 in shape:
            raise DataError(f"{where}: expected {name} images, got none (shape {shape})")
        if shape[1:] != tuple(first.images.shape[1:]):
            raise DataError(
                f"{where}: expected {name} images like the training images, [C, H, W] = "
                f"{list(first.images.shape[1:])}, got {list(shape[1:])}"
            )
        if part.images.dtype != first.images.dtype:
            raise DataError(
                f"{where}: expected {name} images of the type of the training images, {first.images.dtype}, got "
                f"{part.images.dtype}: they would be scaled differently; convert one of them"
            )
        _same_scale(first, part, name, where)
    if raw.task == "classification":
        return _check_classes(raw, where)
    if raw.task == "regression" and not 0.01 < (spread := float(first.targets.std(0, unbiased=False).max())) < 100:
        warnings.warn(
            f"{where}: the targets have a standard deviation of {spread:.3g}: networks learn them where it is near 1, divide them",
            UserWarning,
            stacklevel=4,
        )
    width = max(2, int(first.targets.max()) + 1) if raw.task == "segmentation" else first.targets.shape[1]
    for name, part in raw.parts():
        if raw.task == "segmentation":
            if int(part.targets.max()) >= width:
                raise DataError(
                    f"{where}: expected {name} classes 0-{width - 1} as in the training part, got {int(part.targets.max())}"
                )
        elif part.targets.shape[1] != width:
            raise DataError(
                f"{where}: expected {width} targets per {name} image as in the training part, got {part.targets.shape[1]}"
            )
    return width


def _same_scale(first: Part, part: Part, name: str, where: str) -> None:
    """Floats of two parts that differ a hundred times in size are most likely 0-1 here and 0-255 there."""
    if not (isinstance(first.images, Tensor) and isinstance(part.images, Tensor) and first.images.is_floating_point()):
        return
    one, other = (float(images[:256].abs().max()) for images in (first.images, part.images))
    if min(one, other) > 0 and not 0.01 < one / other < 100:
        warnings.warn(
            f"{where}: training images go up to {one:.3g} and {name} images up to {other:.3g}: are they scaled alike?",
            UserWarning,
            stacklevel=4,
        )


def _check_classes(raw: Raw, where: str) -> int:
    classes, sizes = raw.train.targets.unique(return_counts=True)
    count = len(classes)
    if count == 1:
        raise DataError(
            f"{where}: expected at least two classes, got only label {int(classes[0])} in the training part"
        )
    gap = (classes != torch.arange(count)).nonzero()  # never a tensor as long as the largest label
    if len(gap):
        raise DataError(
            f"{where}: expected labels from 0 with no gap, got no training image with label {int(gap[0])} but one with "
            f"label {int(classes[-1])}; number the classes from 0"
        )
    for name, part in raw.parts():
        if int(part.targets.max()) >= count:
            raise DataError(
                f"{where}: expected {name} labels 0-{count - 1} as in the training part, got {int(part.targets.max())}"
            )
    if int(sizes.max()) >= IMBALANCE * int(sizes.min()):
        few, many = int(sizes.argmin()), int(sizes.argmax())
        names = raw.classes or tuple(str(k) for k in range(count))
        warnings.warn(
            f"{where}: class {names[few]} has {int(sizes[few])} training images and class {names[many]} {int(sizes[many])}: "
            "accuracy will hardly see the small one",
            UserWarning,
            stacklevel=4,
        )
    return count
