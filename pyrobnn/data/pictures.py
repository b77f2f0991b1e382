"""Reads one picture as pixels, in the same way for folders, data sets and streams."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pyrobnn.data.notes import Notes
from pyrobnn.errors import DataError

#: Side of the images, in pixels, if they differ in size and the caller names none.
DEFAULT_SIZE = 64
#: Pillow's modes without colour.
GREY = ("1", "L", "LA", "La")
#: Pixels that any picture may have, and how many a byte of its file may stand for beyond that.
ANY_FILE, PER_BYTE = 1 << 24, 100

TRANSPARENT = "transparency of pictures is ignored: paste them on a background if it matters"
UPPER_BYTE = "colour of 16 bits is read by its upper byte: convert the pictures to 8 bits if that is too coarse"
FRAMES = "pictures of several frames: only the first frame is read"


def is_grey(image: Image.Image) -> bool:
    """Whether a picture has one channel, whatever its depth."""
    return image.mode in GREY or image.mode.startswith("I")


def open_picture(path: str) -> Image.Image:
    """Opens a file; what it says of its size has been checked, its pixels are not read yet.

    Raises:
        DataError: No picture, or one that claims more pixels than a file of its length can honestly hold.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} claims too many pixels for a picture: remove it, or make it smaller") from error
    except Exception as error:  # Pillow's readers raise whatever the bytes led them to
        raise DataError(f"{path} is not a readable image: remove it") from error
    width, height = image.size
    length = os.path.getsize(path)
    if width * height > max(ANY_FILE, PER_BYTE * length):
        image.close()
        raise DataError(f"{path} claims {width}x{height} pixels in {length:,} bytes: remove it, or make it smaller")
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright. Of a file that is not read yet, what its header says."""
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would read all pixels to look for it
        return 1
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # a damaged tag says nothing
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) once the orientation tag is applied."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def file_pixels(path: str, notes: Notes) -> np.ndarray:
    """The pixels of a file, as :func:`pixels` gives them.

    Raises:
        DataError: The file is damaged, or its pixels are of no use.
    """
    image = open_picture(path)
    try:
        with image:
            if getattr(image, "n_frames", 1) > 1:
                notes.add(FRAMES, path)
            if is_deep_colour(image):
                notes.add(UPPER_BYTE, path)
            return pixels(image, path, notes)
    except DataError:
        raise
    except Exception as error:  # the header was fine, the pixels are not
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is a damaged image ({reason}): remove it") from error


def pixels(image: Image.Image, where: str, notes: Notes) -> np.ndarray:
    """Upright pixels ``[C, H, W]`` of any picture: one channel if it is grey, else red, green and blue.

    uint8, or uint16 for grey pictures of more than 8 bits (see `eight_bits`). Palettes, CMYK and other colour
    spaces become RGB; transparency is dropped, and said.

    Raises:
        DataError: Pixels that are floats, negative or beyond 16 bits, or a mode that Pillow cannot convert.
    """
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image) or image
    mode = image.mode
    if mode == "F":
        raise DataError(
            f"{where} has pixels of 32-bit floats: expected 8 or 16 bits; convert it, or give arrays of floats"
        )
    if mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise DataError(f"{where} has pixels beyond 16 bits: expected 8 or 16; convert it, or give an .npz file")
        return values.astype(np.uint16)[None]
    if image.has_transparency_data:
        full = image.convert("LA" if mode in GREY else "RGBA")
        if np.asarray(full.getchannel("A")).min() < 255:
            notes.add(TRANSPARENT, where)
        image = full  # a palette with transparency must lose it in two steps
    try:
        converted = image.convert("L" if mode in GREY else "RGB")
    except ValueError as error:
        raise DataError(f"{where} has pixels of mode {mode}: convert the picture to RGB") from error
    return channels_first(np.array(converted, dtype=np.uint8))


def channels_first(array: np.ndarray) -> np.ndarray:
    """``[H, W]`` or ``[H, W, C]`` to ``[C, H, W]``."""
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def bits_to_drop(largest: int, notes: Notes) -> int:
    """By how many bits pixels of 16 bits are shifted to become 8 bits, from the largest one of the whole source.

    Cameras write 9 to 15 bits into files of 16: taking the upper byte would leave a few levels.

    >>> [bits_to_drop(largest, Notes()) for largest in (200, 4095, 65535)]
    [0, 4, 8]
    """
    bits = max(8, int(largest).bit_length())
    if bits < 16:
        notes.add(f"pixels of 16 bits go up to {largest}, so they are read as {bits} bits")
    return bits - 8


def eight_bits(array: np.ndarray, drop: int) -> np.ndarray:
    """Pixels of 16 bits as uint8; others as they are."""
    return (array >> drop).clip(0, 255).astype(np.uint8) if array.dtype == np.uint16 else array


def with_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Grey pixels ``[1, H, W]`` three times where three channels are asked for."""
    return np.repeat(array, channels, 0) if len(array) == 1 and channels == 3 else array


def resized(array: np.ndarray, size: int) -> np.ndarray:
    """uint8 pixels ``[C, H, W]`` with the shorter side brought to `size` and the middle cut out square."""
    from torchvision.transforms import functional as TF

    if array.shape[1:] == (size, size):
        return array
    image: Any = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    return channels_first(np.array(TF.center_crop(TF.resize(image, [size]), [size]), dtype=np.uint8))


def is_deep_colour(image: Image.Image) -> bool:
    """Whether a file not read yet has more than one channel of 16 bits, of which Pillow keeps the upper byte."""
    tiles: Any = getattr(image, "tile", None)
    return bool(tiles) and not image.mode.startswith("I") and ";16" in str(tiles[0][3])
