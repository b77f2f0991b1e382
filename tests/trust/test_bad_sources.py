"""Data, networks, options and folders that are none: one line that says what is wrong, never a raw error."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.io.checkpoint import load_checkpoint
from pyrobnn.io.manifest import MANIFEST, write_manifest
from pyrobnn.pipeline.config import CompressionConfig


@contextlib.contextmanager
def one_line(what: object) -> Iterator[list[str]]:
    """Whatever happens inside: nothing, or a PyrobnnError of one line."""
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield said
        except pb.PyrobnnError as error:
            said.append(str(error))
            assert len(said[0].splitlines()) == 1, (what, said)
        except Exception as error:
            raise AssertionError(f"{what}: raw {type(error).__name__}: {error}") from error


# Data

IMAGES, LABELS = torch.zeros(20, 1, 8, 8), torch.arange(20) % 2
PIXELS, CLASSES = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
DATA: dict[str, Any] = {
    "None": None, "number": 3, "empty": "", "null byte": "a\0b", "dots": "..", "object": object(), "list": [], "dict": {},
    "function": len, "class": nn.Linear, "bytes": b"digits", "set": {1, 2}, "generator": (n for n in range(3)),
    "triple": (1, 2, 3), "tensor": IMAGES, "no labels": (IMAGES, None), "strings": (["a", "b"], [0, 1]),
    "lengths": (IMAGES, LABELS[:5]), "complex": (IMAGES.to(torch.complex64), LABELS), "empty images": (IMAGES[:0], LABELS[:0]),
    "no pixels": (torch.zeros(20, 1, 0, 8), LABELS), "one class": (IMAGES, LABELS * 0), "scalars": (torch.zeros(20), LABELS),
    "six axes": (torch.zeros(20, 1, 2, 2, 2, 2), LABELS), "nan": (IMAGES + torch.nan, LABELS), "inf": (IMAGES + torch.inf, LABELS),
    "large": (IMAGES.double() + 1e200, LABELS), "float labels": (IMAGES, LABELS + 0.5), "negative": (PIXELS, CLASSES - 1),
    "labels of 10^12": (PIXELS, CLASSES * 10**12), "uint64": (PIXELS, (CLASSES.astype(np.uint64) << np.uint64(63))),
    "objects": (np.array([None] * 20), CLASSES), "sparse": (IMAGES.to_sparse(), LABELS), "meta": (IMAGES.to("meta"), LABELS),
    "structured": (np.zeros(20, [("a", int)]), CLASSES), "dates": (np.zeros((20, 8, 8), "datetime64[s]"), CLASSES),
    "masked": (np.ma.masked_all((20, 8, 8)), CLASSES), "one pair": ((PIXELS, CLASSES), (PIXELS[:, :4], CLASSES)),
    "test classes": ((PIXELS, CLASSES), (PIXELS, CLASSES + 5)), "infinite": iter(int, 1), "range": range(5),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data(name: str, count: Callable[..., None]) -> None:
    with one_line(name):
        pb.load_data(DATA[name])
    count("bad sources", data=1, raw_errors=0)


def folder_of_pictures(root: Path) -> Path:
    for kind in ("cat", "dog"):
        (root / kind).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(np.full((8, 8), 30 * k, np.uint8)).save(root / kind / f"{k}.png")
    return root


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "a pipe in it": lambda at: os.mkfifo(at / "cat" / "pipe.png"),
    "a link loop": lambda at: (at / "cat" / "loop").symlink_to(at),
    "a dead link": lambda at: (at / "cat" / "dead.png").symlink_to(at / "none.png"),
    "a link to itself": lambda at: (at / "cat" / "self.png").symlink_to(at / "cat" / "self.png"),
    "an empty picture": lambda at: (at / "cat" / "empty.png").write_bytes(b""),
    "a folder as a picture": lambda at: (at / "cat" / "folder.png").mkdir(),
    "half a picture": lambda at: (at / "cat" / "0.png").write_bytes((at / "cat" / "0.png").read_bytes()[:40]),
    "a text as a picture": lambda at: (at / "cat" / "text.jpg").write_text("cat"),
    "an empty class": lambda at: (at / "emu").mkdir(),
    "one class": lambda at: shutil.rmtree(at / "dog"),
    "no class": lambda at: (shutil.rmtree(at / "dog"), shutil.rmtree(at / "cat")),
    "a picture of one pixel": lambda at: Image.new("L", (1, 1)).save(at / "cat" / "1.png"),
    "a wide picture": lambda at: Image.new("L", (3000, 1)).save(at / "cat" / "1.png"),
    "floats": lambda at: Image.new("F", (8, 8)).save(at / "cat" / "1.tiff"),
    "a name of bytes": lambda at: open(os.fsencode(at / "cat") + b"/\xff.png", "wb").close(),
    "test without train": lambda at: ((at / "test").mkdir(), shutil.move(at / "cat", at / "test" / "cat")),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_image_folders(name: str, tmp_path: Path, count: Callable[..., None]) -> None:
    root = folder_of_pictures(tmp_path / "pictures")
    FOLDERS[name](root)
    with one_line(name):
        pb.load_data(root)
    count("bad sources", folders=1, raw_errors=0)


# Networks


class Odd(nn.Module):
    """A network that does something else than one."""

    def __init__(self, forward: Callable[[Tensor, nn.Module], Any]) -> None:
        super().__init__()
        self.c, self.h, self._call = nn.Conv2d(1, 4, 3), nn.Linear(4, 10), forward

    def forward(self, x: Tensor) -> Any:
        return self._call(x, self)


def raising(x: Tensor, net: nn.Module) -> Any:
    raise KeyError("two\nlines")


NETS: dict[str, Callable[[], Any]] = {
    "None": lambda: None, "number": lambda: 3, "empty": lambda: "", "colon": lambda: ":", "colons": lambda: "a:b:c",
    "a function that is none": lambda: "json:dumps", "a module": lambda: "json", "a constant": lambda: "math:pi",
    "a class": lambda: nn.Linear, "a function": lambda: len, "null byte": lambda: "a\0b:c", "relative": lambda: ".a:b",
    "no parameters": nn.Identity, "empty net": nn.Sequential, "linear": lambda: nn.Linear(64, 10),
    "raises": lambda: Odd(raising), "returns None": lambda: Odd(lambda x, net: None),
    "returns text": lambda: Odd(lambda x, net: "cat"), "returns whole numbers": lambda: Odd(lambda x, net: x.long()),
    "returns the wrong size": lambda: Odd(lambda x, net: net.c(x)), "exits": lambda: Odd(lambda x, net: 1 / 0),
    "complex": lambda: nn.Sequential(nn.Conv2d(1, 4, 3).to(torch.complex64), nn.Flatten(), nn.LazyLinear(10)),
    "meta": lambda: pb.nets.build("small_cnn", in_channels=1, image_size=8).to("meta"),
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(10)),
    "nan weights": lambda: with_value(torch.nan), "inf weights": lambda: with_value(torch.inf),
    "huge weights": lambda: with_value(1e38), "zero weights": lambda: with_value(0.0),
    "wrong images": lambda: pb.nets.lenet5(), "vanished": lambda: nn.Sequential(nn.Conv2d(1, 0, 3)),
    "keeps a lock": lambda: with_attribute(__import__("threading").Lock()),
    "keeps a generator": lambda: with_attribute(n for n in range(3)),
    "random": lambda: Odd(lambda x, net: net.h(net.c(x).relu().mean((2, 3)) * torch.rand(1))),
    "branches on the batch": lambda: Odd(lambda x, net: net.h(net.c(x).mean((2, 3))) if len(x) > 2 else x.flatten(1)[:, :10]),
}  # fmt: skip


def with_value(value: float) -> nn.Module:
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    with torch.no_grad():
        net.conv1.weight.fill_(value)
    return net


def with_attribute(value: Any) -> nn.Module:
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    net.kept = value
    return net


@pytest.fixture(scope="module")
def few() -> pb.Data:
    from dataclasses import replace

    full = pb.load_data("digits")
    return replace(full, train=full.train.take(60), valid=full.valid.take(30), test=full.test.take(30))


@pytest.mark.parametrize("name", NETS)
def test_networks(name: str, few: pb.Data, count: Callable[..., None]) -> None:
    with one_line(name):
        net = NETS[name]()
        pb.channel_groups(net, few.example)
    with one_line(name):
        pb.compress(NETS[name](), few, "l1", target_macs=0.6, epochs=3, progress=False)
    count("bad sources", networks=1, raw_errors=0)


# Options

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**12), st.floats(), st.text(max_size=8), st.binary(max_size=4),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip
NAMES = [entry.name for entry in fields(CompressionConfig)]


def test_options(size: Callable[[int, int], int], count: Callable[..., None]) -> None:
    tried = 0

    @settings(
        max_examples=size(100, 3000), deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=4))
    def some(options: dict[str, Any]) -> None:
        nonlocal tried
        tried += 1
        with one_line(options):
            CompressionConfig.make(options)

    some()
    count("bad sources", options=tried, raw_errors=0)


# Run directories


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, few: pb.Data) -> Path:
    out = tmp_path_factory.mktemp("made") / "run"
    pb.compress("small_cnn", few, "gaussian", target_macs=0.5, epochs=3, bayesian_epochs=1, out=out, progress=False)
    return out


def nothing(path: Path) -> None:
    """The file is gone."""


REPLACED: dict[str, Callable[[Path], Any]] = {
    "nothing": nothing,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
    "a dead link": lambda path: path.symlink_to(path.with_name("none")),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "an empty file": Path.touch,
    "a hole of 16 GB": lambda path: (path.touch(), os.truncate(path, 2**34)),
    "brackets": lambda path: path.write_bytes(b"[" * 200_000),
    "digits": lambda path: path.write_bytes(b"1" * 10_000),
    "a list": lambda path: path.write_text(json.dumps([1])),
}


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("listed", [True, False])
def test_run_directories(
    kind: str, listed: bool, made: Path, tmp_path: Path, size: Callable[[int, int], int], count: Callable[..., None]
) -> None:
    names = sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file() and p.suffix != ".html")
    names = random.Random(f"{kind} {listed}").sample(names, size(2, len(names)))
    for name in names:
        run = tmp_path / name.name
        shutil.copytree(made, run)
        (run / name).unlink()
        REPLACED[kind](run / name)
        if not listed and name.name != MANIFEST:
            (run / MANIFEST).unlink()
        for door in (pb.load_compact, pb.load_bayesian, pb.load_run):
            with one_line((name, kind, door.__name__)):
                door(run)
        if name.suffix == ".pt":
            with one_line((name, kind, "checkpoint")):
                load_checkpoint(run / name)
        shutil.rmtree(run)
    count("bad sources", files_of_runs=len(names), raw_errors=0)


def test_a_manifest_of_odd_files(made: Path, tmp_path: Path) -> None:
    """A finished directory into which other things were put can be listed again."""
    shutil.copytree(made, tmp_path / "run")
    os.mkfifo(tmp_path / "run" / "pipe")
    (tmp_path / "run" / "loop").symlink_to(tmp_path / "run")
    write_manifest(tmp_path / "run")
    pb.load_compact(tmp_path / "run")
