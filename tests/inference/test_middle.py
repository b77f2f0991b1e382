"""A fit that was stopped in the middle of an epoch ends as if it had not been."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pyrobnn as pb
from pyrobnn.data import Augment, Data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(60):
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        array = rng.integers(0, 256, (10, 9 + number % 3), dtype=np.uint8)
        Image.fromarray(array).save(root / "ab"[number % 2] / f"{number:02d}.png")
    return root


def fit(data: Data, save: Any = None, state: dict[str, Any] | None = None, minutes: float = 0.0) -> pb.FitResult:
    torch.manual_seed(0)
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8, num_classes=2)
    model = pb.BayesianModel(net, pb.priors.Gaussian("fan_in"), data_size=len(data.train))
    settings = {"epochs": 2, "batch_size": 8, "precision": "fp32", "device": "cpu", "save_minutes": minutes}
    return pb.fit(model, pb.guides.MeanField(model), data, progress=False, save=save, state=state, **settings)


@pytest.mark.parametrize("stream", [False, True])
def test_an_epoch_goes_on_where_it_was(folder: Path, stream: bool) -> None:
    def load(workers: int) -> Data:
        augment = Augment(crop=0.5, flip=True) if stream else Augment(shift=1, flip=True)
        return pb.load_data(folder, image_size=8, stream=stream, workers=workers, augment=augment)

    states: list[dict[str, Any]] = []
    whole = fit(load(0), save=lambda state: states.append(copy.deepcopy(state)))
    middle = [state for state in states if state["pass"] is not None]
    assert len(middle) >= 8 and [s["epoch"] for s in states if s["pass"] is None] == [1, 2]
    for state in (middle[1], middle[-2]):
        rest = fit(load(2 if stream else 0), state=state)
        for one, other in ((whole.model, rest.model), (whole.guide, rest.guide)):
            for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
                assert torch.equal(a, b)
        for a, b in zip(whole.history, rest.history, strict=True):
            assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_an_epoch_is_saved_in_its_middle_only_after_a_while(folder: Path) -> None:
    states: list[dict[str, Any]] = []
    fit(pb.load_data(folder, image_size=8), save=lambda state: states.append(state["pass"]), minutes=10.0)
    assert states == [None, None]
    with pytest.raises(pb.PyrobnnError, match="save_minutes must be 0 or more"):
        fit(pb.load_data(folder, image_size=8), minutes=-1.0)
