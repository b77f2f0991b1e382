"""The same picture read alike from a folder, a data set and an array, whatever its mode, depth and orientation."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from pyrobnn.data import Data, load_data
from pyrobnn.errors import DataError

RNG = np.random.default_rng(0)
COUNT = 12
PILLOW = int(PIL.__version__.partition(".")[0])


class Pictures(Dataset[Any]):
    """Pictures with the classes 0 and 1 in turns."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], index % 2


def colour(size: tuple[int, int] = (6, 5)) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def folder(root: Path, images: list[Image.Image], ending: str = ".png", **options: Any) -> Path:
    for number, image in enumerate(images):
        place = root / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:03d}{ending}", **options)
    return root


def pixels(data: Data) -> list[bytes]:
    """All pixels of a data set, in an order that no split changes."""
    every = torch.cat([part.images for part in (data.train, data.valid, data.test)])  # type: ignore[misc]
    return sorted(image.numpy().tobytes() for image in every)


def both(tmp_path: Path, images: list[Image.Image], ending: str = ".png") -> tuple[Data, Data]:
    one, other = load_data(folder(tmp_path / "set", images, ending)), load_data(Pictures(images))
    assert one.image_shape == other.image_shape
    assert pixels(one) == pixels(other)
    return one, other


@pytest.mark.parametrize(
    ("mode", "ending", "channels"),
    [
        ("RGB", ".png", 3),
        ("L", ".png", 1),
        ("P", ".png", 3),
        ("1", ".png", 1),
        ("CMYK", ".tif", 3),
        pytest.param("YCbCr", ".tif", 3, marks=pytest.mark.skipif(PILLOW < 13, reason="Pillow 12 cannot read these")),
    ],
)
def test_modes_without_loss(tmp_path: Path, mode: str, ending: str, channels: int) -> None:
    images = [colour().quantize(16) if mode == "P" else colour().convert(mode) for _ in range(COUNT)]
    data, _ = both(tmp_path, images, ending)
    assert data.image_shape == (channels, 5, 6)
    plain = [np.asarray(image.convert("RGB" if channels == 3 else "L")) for image in images]
    expected = [array[None] if array.ndim == 2 else array.transpose(2, 0, 1) for array in plain]
    assert pixels(data) == sorted(np.ascontiguousarray(array).tobytes() for array in expected)


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1)])
def test_transparency_is_dropped_with_a_word(tmp_path: Path, mode: str, channels: int) -> None:
    images = [colour().convert(mode) for _ in range(COUNT)]
    assert load_data(Pictures(images)).image_shape == (channels, 5, 6)  # opaque: nothing is lost
    for image in images:
        image.putalpha(100)
    with pytest.warns(UserWarning, match="transparency of pictures is ignored"):
        one = load_data(folder(tmp_path, images))
    with pytest.warns(UserWarning, match="transparency of pictures is ignored"):
        assert pixels(load_data(Pictures(images))) == pixels(one)
    palette = [colour().quantize(8) for _ in range(COUNT)]
    for image in palette:
        image.info["transparency"] = bytes([0, 255, 255, 255, 255, 255, 255, 255])
    with pytest.warns(UserWarning, match="transparency"):
        assert load_data(Pictures(palette)).image_shape[0] == 3


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15, 16])
def test_grey_of_many_bits_keeps_its_upper_eight(tmp_path: Path, bits: int) -> None:
    arrays = [RNG.integers(0, 2**bits, (5, 6)).astype(np.uint16) for _ in range(COUNT)]
    arrays[0][0, 0] = 2**bits - 1
    images = [Image.fromarray(array) for array in arrays]
    sources: dict[str, Any] = {
        "folder": folder(tmp_path / "set", images),
        "pictures": Pictures(images),
        "arrays": Pictures(arrays),
    }
    stacked, labels = np.stack(arrays), np.arange(COUNT) % 2
    np.savez(tmp_path / "a.npz", x_train=stacked, y_train=labels, x_test=stacked, y_test=labels)
    sources |= {"npz": tmp_path / "a.npz", "pair": (stacked, labels), "tensors": (torch.from_numpy(stacked), labels)}
    expected = sorted((array >> (bits - 8)).astype(np.uint8).tobytes() for array in arrays)
    for name, source in sources.items():
        if bits == 16:
            data = load_data(source)
        else:
            with pytest.warns(UserWarning, match=f"read as {bits} bits"):
                data = load_data(source)
        assert data.train.images.dtype == torch.uint8
        assert pixels(data) == (sorted(expected * 2) if name == "npz" else expected), name


def deep_png(array: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel; Pillow cannot write one with colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = array.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_of_many_bits(tmp_path: Path, channels: int) -> None:
    for name, most in (("full", 65536), ("few", 4096)):
        arrays = [RNG.integers(0, most, (5, 6, channels)).astype(np.uint16) for _ in range(COUNT)]
        for number, array in enumerate(arrays):
            if channels == 4:
                array[..., -1] = 65535
            (tmp_path / name / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "ab"[number % 2] / f"{number}.png").write_bytes(deep_png(array))
        if name == "full":
            with pytest.warns(UserWarning, match="colour of 16 bits is read by its upper byte"):
                data = load_data(tmp_path / name)
            kept = [array[..., :3].transpose(2, 0, 1) >> 8 for array in arrays]
            assert pixels(data) == sorted(np.ascontiguousarray(array.astype(np.uint8)).tobytes() for array in kept)
    with pytest.raises(DataError, match="16 bits that use the lower ones, of which Pillow keeps 16 levels"):
        load_data(tmp_path / "few")


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_orientation_is_applied(tmp_path: Path, turned: int, ending: str) -> None:
    images = [colour() for _ in range(COUNT)]
    exif = Image.Exif()
    exif[0x0112] = turned
    data = load_data(folder(tmp_path, images, ending, exif=exif))
    assert data.image_shape == ((3, 6, 5) if turned >= 5 else (3, 5, 6))
    opened = [Image.open(path) for path in sorted(tmp_path.rglob(f"*{ending}"))]
    upright = [np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1) for image in opened]
    assert pixels(data) == sorted(np.ascontiguousarray(array).tobytes() for array in upright)
    assert pixels(load_data(Pictures(opened))) == pixels(data)


def test_floats_are_refused_by_name(tmp_path: Path) -> None:
    images = [Image.fromarray(RNG.random((5, 6)).astype(np.float32)) for _ in range(COUNT)]
    for source in (folder(tmp_path, images, ".tiff"), Pictures(images)):
        with pytest.raises(DataError, match="32-bit floats"):
            load_data(source)
    wide = [Image.fromarray(np.full((5, 6), 70_000, np.int32)) for _ in range(COUNT)]
    with pytest.raises(DataError, match="beyond 16 bits"):
        load_data(Pictures(wide))


def test_grey_among_colour_and_several_sizes(tmp_path: Path) -> None:
    images = [colour((9, 7)) if number % 3 else colour().convert("L") for number in range(COUNT)]
    with pytest.warns(UserWarning, match="2 sizes are resized to 64x64"):
        one = load_data(folder(tmp_path, images))
    with pytest.warns(UserWarning, match="2 sizes are resized to 64x64"):
        other = load_data(Pictures(images))
    assert one.image_shape == (3, 64, 64) and pixels(one) == pixels(other)
    small = load_data(Pictures(images), image_size=8)
    assert small.image_shape == (3, 8, 8) and pixels(small) == pixels(load_data(tmp_path, image_size=8))


def test_only_the_first_frame_is_read_and_said(tmp_path: Path) -> None:
    first, second = colour(), colour()
    root = folder(tmp_path, [first] * COUNT, ".tif", save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match="several frames: only the first"):
        data = load_data(root)
    assert set(pixels(data)) == {np.ascontiguousarray(np.asarray(first).transpose(2, 0, 1)).tobytes()}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 9, 8), (3, 9, 8)),
        ((1, 9, 8), (1, 9, 8)),
        ((4, 9, 8), (4, 9, 8)),
        ((9, 8, 3), (3, 9, 8)),
        ((9, 8, 1), (1, 9, 8)),
        ((9, 8), (1, 9, 8)),
        ((3, 8, 8), (3, 8, 8)),
        ((4, 5, 3), (3, 4, 5)),
        ((3, 5, 4), (3, 5, 4)),
        ((7, 6, 6), (7, 6, 6)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.bool_])
def test_layouts_of_numpy_pictures(shape: tuple[int, ...], expected: tuple[int, ...], dtype: Any) -> None:
    arrays = [(RNG.random(shape) * 255).astype(dtype) for _ in range(COUNT)]
    data = load_data(Pictures(arrays))
    assert data.image_shape == expected
    moved = [a[None] if a.ndim == 2 else a if a.shape == expected else a.transpose(2, 0, 1) for a in arrays]
    scale = 255 if dtype is np.bool_ else 1
    stored = np.float32 if dtype in (np.float32, np.float64) else np.uint8
    assert pixels(data) == sorted(np.ascontiguousarray(a.astype(stored) * stored(scale)).tobytes() for a in moved)
    assert pixels(load_data((np.stack(arrays), np.arange(COUNT) % 2))) == pixels(data)


def test_layouts_that_are_guesses() -> None:
    with pytest.warns(UserWarning, match=r"could be \[H, W, C\] or \[C, H, W\]"):
        load_data(Pictures([RNG.integers(0, 255, (3, 5, 3), dtype=np.uint8)] * COUNT))
    with pytest.raises(DataError, match="could be NHWC or NCHW"):
        load_data(Pictures([RNG.integers(0, 255, (2, 7, 9), dtype=np.uint8)] * COUNT))
    with pytest.warns(UserWarning, match=r"tensors are read as \[C, H, W\] = \[8, 8, 3\]"):
        load_data(Pictures([torch.rand(8, 8, 3)] * COUNT))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def plain_png(width: int, height: int, body: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def _tiff(body: Callable[[bytes], bytes]) -> bytes:
    stream = io.BytesIO()
    colour((64, 64)).save(stream, "tiff")
    return body(stream.getvalue())


BROKEN: dict[str, tuple[str, bytes]] = {
    "bomb beyond Pillow's own limit": ("a.png", plain_png(20_000, 20_000, b"\0" * 99)),
    "bomb below it": ("a.png", plain_png(9_000, 9_000, b"\0" * 99)),
    "whole bomb": ("a.png", plain_png(6_000, 6_000, (b"\0" * 6_001) * 6_000)),
    "empty": ("a.jpg", b""),
    "text": ("a.png", b"this is no picture"),
    "cut": ("a.png", plain_png(64, 64, RNG.bytes(64 * 65))[:300]),
    "rows missing": ("a.png", plain_png(64, 64, b"\0" * 99)),
    "damaged stream": ("a.png", plain_png(64, 64, RNG.bytes(4160)).replace(b"IDAT", b"IDAT\x00\x00", 1)),
    "tiff without its table": ("a.tif", _tiff(lambda b: b[:8] + b[-40:])),
    "tiff with an endless offset": ("a.tif", _tiff(lambda b: b[:4] + b"\xff\xff\xff\xff" + b[8:])),
    "bmp header": ("a.bmp", b"BM" + b"\xff" * 60),
    "pgm of size zero": ("a.pgm", b"P5 0 0 255 "),
    "pgm without pixels": ("a.pgm", b"P5 3000 3000 255 "),
    "webp": ("a.webp", b"RIFF\x10\x00\x00\x00WEBPVP8 " + b"\0" * 10),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_pictures_give_one_line(tmp_path: Path, case: str) -> None:
    name, content = BROKEN[case]
    root = folder(tmp_path, [colour((64, 64)) for _ in range(COUNT)])
    write(root / "b" / name, content)
    with pytest.raises(DataError, match=name) as caught:
        load_data(root)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_raises_is_named() -> None:
    class Broken(Pictures):
        def __getitem__(self, index: int) -> Any:
            return {}["key"] if index == 3 else super().__getitem__(index)

    images = [colour() for _ in range(COUNT)]
    for stream in (False, True):
        with pytest.raises(DataError, match="Broken: reading item 3 raised KeyError"):
            load_data(Broken(images), stream=stream)
    lazy = [Image.open(io.BytesIO(plain_png(64, 64, b"\0" * 99))) for _ in range(COUNT)]
    with pytest.raises(DataError, match="an image is damaged"):
        load_data(Pictures(lazy))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_litter_beside_pictures(tmp_path: Path) -> None:
    root = folder(tmp_path, [colour() for _ in range(COUNT)])
    os.mkfifo(root / "a" / "pipe.png")
    with pytest.warns(UserWarning, match="neither file nor folder is left out"):
        assert len(load_data(root, valid_fraction=0, test_fraction=0.5).train) == COUNT // 2
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match="no ordinary file"):
        load_data(tmp_path / "pipe.npz")
