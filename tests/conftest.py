"""What all tests share: fixed seeds, an empty parameter store, and the way to real data."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest

import pyrobnn as pb

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    """Every test starts from the same random state and an empty global parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture(scope="session")
def few_digits() -> Callable[[Path, int, int], Path]:
    """Writes so many training and test images of digits to `few.npz` in a folder; returns the folder."""

    def write(folder: Path, train: int, test: int) -> Path:
        full = pb.load_data("digits", valid_fraction=0.0)
        parts = {"train": full.train.take(train), "test": full.test.take(test)}
        images = {f"x_{name}": part.images.numpy() for name, part in parts.items()}
        labels = {f"y_{name}": part.labels.numpy() for name, part in parts.items()}
        np.savez_compressed(folder / "few.npz", **images, **labels)
        return folder

    return write


@pytest.fixture
def shared_data() -> Path:
    """The folder with mnist.npz and cifar10.npz; the test is skipped where there is none."""
    folder = Path(os.environ.get("PYROBNN_DATA", "")).expanduser()
    missing = [name for name in ("mnist.npz", "cifar10.npz") if not (folder / name).is_file()]
    if "PYROBNN_DATA" not in os.environ or missing:
        pytest.skip("needs PYROBNN_DATA, a folder with mnist.npz and cifar10.npz")
    return folder


@pytest.fixture
def shared_weights(shared_data: Path) -> Path:
    """The folder ``weights`` beside the data, with the trained CIFAR-10 networks."""
    folder = shared_data.resolve().parent / "weights"
    if not (folder / "resnet20_cifar10.safetensors").is_file():
        pytest.skip(f"needs trained networks in {folder.name}/ beside PYROBNN_DATA")
    return folder


def exit_codes(children: list[int], expected: list[int]) -> list[int]:
    """Those of child processes. An unexpected one ends the other children, which would wait for it, and so does a timeout."""
    codes: dict[int, int] = {}
    awaited = dict(zip(children, expected, strict=True))
    try:
        while awaited.keys() != codes.keys() and all(code == awaited[child] for child, code in codes.items()):
            time.sleep(0.01)
            for child in awaited.keys() - codes.keys():
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
    finally:
        for child in awaited.keys() - codes.keys():
            os.kill(child, signal.SIGKILL)
            codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [codes[child] for child in children]


@pytest.fixture(scope="session")
def in_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """`in_processes(2, function, *arguments)`: what the function returns in each of two processes that torchrun would start.

    They are forks, so that nothing is imported again; one thread each. The one that is `killed` kills itself, and has None.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    folder = tmp_path_factory.mktemp("processes")

    def run(size: int, function: Callable[..., Any], *arguments: Any, killed: int = -1) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(size):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # forks of a process with threads
                child = os.fork()
            if child == 0:
                status = 1
                try:
                    given = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
                    os.environ.update({name: str(value) for name, value in given.items()}, MASTER_ADDR="127.0.0.1")
                    import torch

                    torch.set_num_threads(1)
                    (folder / str(rank)).write_bytes(pickle.dumps(function(*arguments)))
                    status = 0
                except BaseException:
                    print(f"process {rank}:\n{traceback.format_exc()}", file=sys.__stderr__, flush=True)
                finally:
                    os._exit(status)
            children.append(child)
        expected = [-signal.SIGKILL if rank == killed else 0 for rank in range(size)]
        codes = exit_codes(children, expected)
        assert codes == expected, f"processes ended with {codes}"
        return [None if rank == killed else pickle.loads((folder / str(rank)).read_bytes()) for rank in range(size)]

    return run
