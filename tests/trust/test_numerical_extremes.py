"""Weights, images and settings at the edge of floating point: finite figures, or one line that names the place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb

SCALES = [0.0, 1e-38, 1e-20, 1e-6, 1e6, 1e20, 1e38]
METHODS = ["gaussian", "ard", "l1", "rbp", "ss-gl", "turbo-vbi"]


@pytest.fixture(scope="module")
def few() -> pb.Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(60), valid=full.valid.take(30), test=full.test.take(30))


def net_with(scale: float) -> nn.Module:
    torch.manual_seed(0)
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    with torch.no_grad():
        net.conv2.weight.mul_(scale)
        net.fc1.weight.mul_(scale)
    return net


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for part in value.values() for n in numbers(part)]
    if isinstance(value, list | tuple):
        return [n for part in value for n in numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


def finite(result: pb.Result) -> None:
    for name in ("dense", "compact", "reduction"):
        assert all(math.isfinite(n) for n in numbers(result.report[name])), (name, result.report[name])
    for name, value in result.compact.state_dict().items():
        assert bool(torch.isfinite(value).all()), name


def case(what: object, call: Callable[[], Any]) -> bool:
    """Whether it ended in an answer; False for an error of one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except pb.PyrobnnError as error:
            assert len(str(error).splitlines()) == 1, what
            return False
        except Exception as error:
            raise AssertionError(f"{what}: raw {type(error).__name__}: {error}") from error
    return True


@pytest.mark.timeout(600)
def test_weights(few: pb.Data, size: Callable[[int, int], int], count: Callable[..., None]) -> None:
    answers = tried = 0
    cases = [(method, scale) for method in METHODS for scale in SCALES]
    for method, scale in cases[:: max(1, len(cases) // size(4, len(cases)))]:
        tried += 1
        answers += case((method, scale), lambda: finite(
            pb.compress(net_with(scale), few, method, trained=True, target_macs=0.6, epochs=2, progress=False)  # noqa: B023
        ))  # fmt: skip
    count("numerical extremes", networks=tried, finite_answers=answers, raw_errors=0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("lr", [1e-30, 1e3, 1e15])
def test_fits(lr: float, few: pb.Data, count: Callable[..., None]) -> None:
    model = pb.BayesianModel(net_with(1.0), pb.priors.Gaussian("fan_in"), data_size=len(few.train))
    guide = pb.guides.MeanField(model)

    def call() -> None:
        found = pb.fit(model, guide, few, epochs=2, lr=lr, guide_lr=lr, progress=False, precision="fp32")
        values = [value for part in (found.model, found.guide) for value in part.state_dict().values()]
        assert all(bool(torch.isfinite(value).all()) for value in values if value.is_floating_point())

    count("numerical extremes", fits=1, finite_answers=int(case(lr, call)), raw_errors=0)


@pytest.mark.parametrize("images", ["constant", "one white pixel", "tiny", "large"])
def test_images(images: str, few: pb.Data, count: Callable[..., None]) -> None:
    shape = few.train.images.shape
    pixels = {
        "constant": torch.full(shape, 7, dtype=torch.uint8),
        "one white pixel": torch.zeros(shape, dtype=torch.uint8).index_fill_(0, torch.tensor([0]), 255),
        "tiny": few.train.images.float() * 1e-30,
        "large": few.train.images.float() * 1e30,
    }[images]
    data = [(pixels, few.train.labels), (pixels[:20], few.train.labels[:20])]

    def call() -> None:
        finite(pb.compress("small_cnn", tuple(data), "l1", target_macs=0.6, epochs=3, progress=False))

    count("numerical extremes", image_sets=1, finite_answers=int(case(images, call)), raw_errors=0)
