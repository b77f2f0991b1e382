"""Files that were damaged or written by a stranger: the same content, or one line that says what is wrong."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.compression.store import read_description, read_report
from pyrobnn.io.checkpoint import load_checkpoint
from pyrobnn.io.manifest import MANIFEST, RunFiles, write_manifest
from pyrobnn.io.sparse import save_sparse


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, few_digits: Callable[[Path, int, int], Path]) -> Path:
    """A small finished run with everything in it, its data, and weights files of each kind."""
    folder = few_digits(tmp_path_factory.mktemp("made"), 120, 60)
    pb.compress(
        "small_cnn", folder / "few.npz", "gaussian", target_macs=0.5, epochs=3, bayesian_epochs=1,
        out=folder / "run", progress=False,
    )  # fmt: skip
    state = net().state_dict()
    torch.save(state, folder / "weights.pth")
    torch.save({"state_dict": state}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    state["fc1.weight"] = torch.where(state["fc1.weight"].abs() > 0.1, state["fc1.weight"], 0.0)
    save_sparse(state, folder / "sparse.safetensors")
    return folder


def net() -> nn.Module:
    torch.manual_seed(0)
    return pb.nets.build("small_cnn", in_channels=1, image_size=8)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def with_weights(path: Path) -> dict[str, Tensor]:
    module = net()
    pb.nets.load_weights(module, path)
    return tensors_of(module)


def report(run: Path) -> Any:
    with RunFiles(run) as files:
        return read_report(files), read_description(files)


def checkpoint(path: Path) -> Any:
    return load_checkpoint(path)


def data(path: Path) -> Any:
    loaded = pb.load_data(path)
    return [loaded.train.images, loaded.train.labels, loaded.test.images, loaded.test.labels]


# What is mutated, and what is called then, with the folder of `made`.
DOORS: dict[str, Callable[[Path], Any]] = {
    "run/compact.safetensors": lambda at: tensors_of(pb.load_compact(at / "run")),
    "run/compact.json": lambda at: [tensors_of(pb.load_compact(at / "run")), report(at / "run")],
    "run/bayesian.safetensors": lambda at: pb.load_bayesian(at / "run").state(),
    "run/report.json": lambda at: report(at / "run"),
    "run/manifest.json": lambda at: tensors_of(pb.load_compact(at / "run")),
    "run/plan.json": lambda at: json.loads(pb.PruningPlan.load(at / "run" / "plan.json").to_json()),
    "run/checkpoint.pt": lambda at: checkpoint(at / "run" / "checkpoint.pt"),
    "run/dense.safetensors": lambda at: with_weights(at / "run" / "dense.safetensors"),
    "weights.pth": lambda at: with_weights(at / "weights.pth"),
    "legacy.pt": lambda at: with_weights(at / "legacy.pt"),
    "sparse.safetensors": lambda at: with_weights(at / "sparse.safetensors"),
    "few.npz": lambda at: data(at / "few.npz"),
}
# Those whose every byte is under a checksum: another content is never returned.
SEALED = {"run/compact.safetensors", "run/compact.json", "run/bayesian.safetensors", "run/report.json", "run/checkpoint.pt",
          "few.npz"}  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One random change of a file's bytes."""
    kind, size = rng.randrange(8), len(data)
    a, b = sorted(rng.randrange(size + 1) for _ in range(2))
    if kind == 0:
        return data[:a]
    if kind == 1:
        return data[:a] + data[b:]
    if kind == 2:
        return data[:a] + rng.randbytes(rng.randrange(1, 64)) + data[a:]
    if kind == 3:
        return data[:a] + b"\0" * (b - a) + data[b:]
    if kind == 4:
        return data[:b] + data[a:]
    broken = bytearray(data)
    # The header, where sizes and names are, or anywhere.
    reach = min(size, 600) if kind == 5 else size
    for _ in range(1 if kind == 6 else rng.randrange(1, 9)):
        place = rng.randrange(reach)
        broken[place] ^= 1 << rng.randrange(8)
    return bytes(broken)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON file replaced by another kind of value."""
    content = json.loads(data)
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    odd = [None, True, -1, 10**30, 1e400, float("nan"), "", "x" * 5000, [], {}, [[[]]], "os:system", {"a": {"a": {}}}]
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(odd)
    return json.dumps(content).encode()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.timeout(600)
def test_mutated_files(
    name: str, made: Path, tmp_path: Path, size: Callable[[int, int], int], count: Callable[..., None]
) -> None:
    shutil.copytree(made, tmp_path / "at")
    at, path, door = tmp_path / "at", tmp_path / "at" / name, DOORS[name]
    whole, expected = path.read_bytes(), door(at)
    listed = name.startswith("run/") and name != f"run/{MANIFEST}"
    refused = unchanged = other = 0
    for seed in range(size(5, 170)):
        rng = random.Random(f"{name}/{seed}")
        broken = mutate_json(whole, rng) if name.endswith(".json") and rng.random() < 0.5 else mutate(whole, rng)
        path.write_bytes(broken)
        stranger = listed and rng.random() < 0.5  # one who writes a manifest that fits
        if stranger:
            write_manifest(at / "run")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a manifest that is gone
                got = door(at)
        except pb.PyrobnnError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1, (name, seed, error)
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: raw {type(error).__name__}: {error}") from error
        else:
            if same(expected, got):
                unchanged += 1
            else:
                other += 1
                assert stranger or name not in SEALED, f"{name}, seed {seed}: loaded with another content"
                assert name != "run/checkpoint.pt", seed
        if stranger:
            path.write_bytes(whole)
            write_manifest(at / "run")
    count("mutated files", tried=refused + unchanged + other, refused=refused, harmless=unchanged, raw_errors=0)
    count("mutated files without a checksum", read_as_they_are=other, silent_errors=0)
