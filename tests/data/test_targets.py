"""Targets of every task, and inputs that are no pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from pyrobnn.data import Augment, load_data
from pyrobnn.errors import DataError


def test_targets_of_other_tasks() -> None:
    images = torch.rand(40, 1, 6, 5)
    real = load_data((images, torch.randn(40, 2)))
    assert real.task == "regression" and real.num_classes == 2 and real.train.labels.dtype == torch.float32
    assert load_data((images, torch.randn(40))).train.labels.shape == (29, 1)
    assert load_data((images, torch.arange(40)), task="regression").num_classes == 1
    with pytest.warns(UserWarning, match="standard deviation of .*divide them"):
        load_data((images, 1e4 * torch.randn(40)))
    many = load_data((images, (torch.rand(40, 3) < 0.5).int()), task="multilabel")
    assert many.task == "multilabel" and many.num_classes == 3
    masks = torch.randint(0, 4, (40, 6, 5), dtype=torch.uint8)
    masks[:, 0, 0], masks[:, 1, 1] = 255, 3
    pixelwise = load_data((images, masks))
    assert pixelwise.task == "segmentation" and pixelwise.num_classes == 4
    assert pixelwise.train.labels[:, 0, 0].unique().tolist() == [-100]
    assert torch.equal(pixelwise.test.labels[:, 1:], masks[_rows(pixelwise, images), 1:].long())
    for targets, task, message in (
        (torch.rand(40, 3) < 0.5, None, "could be one-hot"),
        (torch.randn(40, 3), "multilabel", "0 or 1 for each label"),
        (torch.randn(40), "classification", "integer labels"),
        (torch.zeros(40, 6, 4).long(), "segmentation", "a class per pixel"),
        (torch.arange(40) % 2, "guess", "expected a task of"),
    ):
        with pytest.raises(DataError, match=message):
            load_data((images, targets), task=task)


def _rows(data: Any, images: torch.Tensor) -> torch.Tensor:
    """Which of the images the test part holds."""
    return torch.stack([(images == image).flatten(1).all(1).nonzero()[0, 0] for image in data.test.images])


def test_signals_and_volumes() -> None:
    signals = torch.randn(40, 2, 16)
    for source in (
        (signals, torch.arange(40) % 2),
        TensorDataset(signals, torch.arange(40) % 2),
        (signals.numpy(), torch.arange(40) % 2),
    ):
        data = load_data(source, signals=True)
        assert data.image_shape == (2, 16)
        x, _ = next(data.train.batches(8, channels_last=True))
        assert x.shape == (8, 2, 16) and len(data.mean) == 2
    volumes = load_data((torch.rand(40, 2, 4, 5, 6), torch.arange(40) % 2))
    assert volumes.image_shape == (2, 4, 5, 6) and next(volumes.train.batches(8, channels_last=True))[0].ndim == 5
    with pytest.raises(DataError, match="augmentation is for images"):
        load_data((torch.rand(40, 2, 4, 5, 6), torch.arange(40) % 2), augment=Augment(flip=True))
