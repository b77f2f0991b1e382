"""What `examples/imagenet` generates is as mixed as it says, and is read as it is."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

import pyrobnn as pb

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "imagenet"


def run(script: str, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(FOLDER / script), run_name="__main__")


def test_pictures(tmp_path: Path) -> None:
    run("pictures.py", str(tmp_path / "pictures"), "--count", "80")
    kinds, turned, sizes = set(), 0, []
    for path in (tmp_path / "pictures").rglob("*.*"):
        with Image.open(path) as image:
            kinds.add(image.mode)
            turned += image.getexif().get(0x0112) == 6
            sizes += image.size
    assert kinds >= {"RGB", "L", "CMYK", "I;16"} and turned and 64 <= min(sizes) < max(sizes) <= 500
    data = pb.load_data(tmp_path / "pictures", stream=True, workers=0, image_size=32, valid_fraction=0.25)
    assert (len(data.train), len(data.valid), len(data.test)) == (54, 18, 8)
    assert data.classes == ("falling", "lying", "rising", "standing")
    x, y = next(iter(data.train.batches(20)))
    assert x.shape == (20, 3, 32, 32) and len(y.unique()) > 1


def test_weights(tmp_path: Path) -> None:
    run("weights.py", "mobilenet_v2", str(tmp_path / "w.safetensors"), "--random", "4")
    net = pb.nets.build("mobilenet_v2", num_classes=4)
    info = pb.nets.load_weights(net, tmp_path / "w.safetensors")
    assert info.trained_on == "train" and info.mean == pytest.approx((0.485, 0.456, 0.406))
