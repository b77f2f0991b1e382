"""A fit that runs out of memory ends with one line and a checkpoint that goes on."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb

OF_TORCH = {
    "device": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."
    ),
    "host": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to ..."
    ),
    "host of Python": MemoryError(),
    "readers": RuntimeError("DataLoader worker (pid 4) is killed by signal: Killed. "),
}


class Greedy(nn.Module):
    """A network that fails from a given training pass on."""

    def __init__(self, error: BaseException | None, after: int) -> None:
        super().__init__()
        self.last, self.error, self.left = nn.Linear(64, 10), error, after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training and torch.is_grad_enabled()
        if self.error is not None and self.left < 0:
            raise self.error
        return self.last(x.flatten(1))


def fitted(error: BaseException | None, checkpoint: Path | None, resume: bool = False) -> pb.FitResult:
    torch.manual_seed(0)
    data = pb.load_data("digits")
    net = Greedy(error, after=40)  # an epoch has 17 steps
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=len(data.train))
    guide = pb.guides.MeanField(model)
    return pb.fit(
        model, guide, data, epochs=3, batch_size=64, precision="fp32", checkpoint=checkpoint, resume=resume, progress=False,
        title="infer 1",
    )  # fmt: skip


@pytest.mark.parametrize("kind", list(OF_TORCH))
def test_one_line_says_what_was_tried_and_what_to_lower(kind: str, tmp_path: Path) -> None:
    with pytest.raises(pb.OutOfMemory) as caught:
        fitted(OF_TORCH[kind], None)
    said = str(caught.value)
    assert "\n" not in said and "infer 1 (epoch 3 of 3, 64 images a step)" in said and "--resume" not in said
    assert ("--workers" if kind == "readers" else "--batch-size") in said
    assert kind == "readers" or f"out of memory on the {kind.split()[0]} " in said


def test_the_checkpoint_goes_on(tmp_path: Path) -> None:
    with pytest.raises(pb.OutOfMemory, match="goes on with --resume"):
        fitted(OF_TORCH["host"], tmp_path / "fit.pt")
    rest = fitted(None, tmp_path / "fit.pt", resume=True)
    whole = fitted(None, None)
    assert [row["loss"] for row in rest.history] == [row["loss"] for row in whole.history]


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes") as caught:
        fitted(RuntimeError("shapes do not fit"), None)
    assert not isinstance(caught.value, pb.PyrobnnError)


@pytest.mark.parametrize("kind", ["device", "host"])
def test_outside_of_the_steps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OF_TORCH[kind]

    module = importlib.import_module("pyrobnn.compression.compress")  # its name in the package is the function's
    monkeypatch.setattr(module, "channel_groups", fail)
    with pytest.raises(pb.OutOfMemory, match=f"out of memory on the {kind} during passes over images"):
        pb.compress("small_cnn", "digits", epochs=2, target_macs=0.5, progress=False)
