"""A folder of generated pictures as mixed as those of a real collection, to try commands on before the data is there.

Four classes (stripes that lie, stand, or run either way), 64 to 500 pixels a side, most of them RGB JPEGs; some grey, CMYK,
rotated by their EXIF tag, or PNGs of 16 bits.

    python examples/imagenet/pictures.py FOLDER --count 2000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("lying", "standing", "falling", "rising")
KINDS = ("rgb",) * 6 + ("grey", "cmyk", "rotated", "sixteen bits")
ORIENTATION = 0x0112  # the EXIF tag; 6 says that the picture is stored a quarter turn to the left


def picture(label: int, rng: np.random.Generator) -> np.ndarray:
    """Stripes in the colours of chance under noise, uint8 `[H, W, 3]`."""
    height, width = rng.integers(64, 501, 2)
    rows, columns = np.mgrid[:height, :width] / 64.0
    across = (rows, columns, rows - columns, rows + columns)[label]
    wave = np.sin(2 * np.pi * rng.uniform(2, 5) * across + rng.uniform(0, 6))[..., None]
    colours = rng.uniform(40, 215, 3) + rng.uniform(30, 60, 3) * wave
    return (colours + rng.normal(0, 12, (height, width, 1))).clip(0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, kind: str) -> None:
    """One file, as a picture of that kind."""
    image = Image.fromarray(pixels)
    if kind == "sixteen bits":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(grey).save(path.with_suffix(".png"))
    elif kind == "rotated":
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpg"), quality=85, exif=exif)
    else:
        image.convert({"rgb": "RGB", "grey": "L", "cmyk": "CMYK"}[kind]).save(path.with_suffix(".jpg"), quality=85)


def main() -> None:
    """Writes FOLDER/train and FOLDER/val, a tenth of the pictures in the latter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    rng = np.random.default_rng(told.seed)
    for number in range(told.count):
        label = number % len(CLASSES)
        part = "val" if number // len(CLASSES) % 10 == 0 else "train"
        folder = told.folder / part / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{number:06d}", picture(label, rng), str(rng.choice(KINDS)))


if __name__ == "__main__":
    main()
