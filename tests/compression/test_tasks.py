"""Networks that do not name one class per image, through `compress` in one call each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import pyrobnn as pb
from pyrobnn.tasks import Task, classification, regression

RUN: dict[str, Any] = {"progress": False, "precision": "fp32", "device": "cpu", "batch_size": 32}


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """Two levels with a skip connection."""

    def __init__(self, classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2 = block(1, width), block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join, self.out = block(2 * width, width), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        low = self.down2(F.max_pool2d(skip, 2))
        return self.out(self.join(torch.cat([skip, self.up(low)], 1)))


def shapes(count: int, side: int = 12) -> tuple[Tensor, Tensor]:
    """Noisy squares (1) and bars (2) on a background (0), and the class of every pixel."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, side, side, dtype=torch.int64)
    for mask in masks:
        row, column = torch.randint(0, side - 5, (2,), generator=generator).tolist()
        mask[row : row + 4, column : column + 4] = 1
        mask[:, int(torch.randint(side, (1,), generator=generator))] = 2
    level = torch.tensor([0.0, 1.0, -1.0])[masks]
    return (level + 0.5 * torch.randn(level.shape, generator=generator))[:, None], masks


def checked(result: pb.Result, metric: str) -> dict[str, Any]:
    """What every report of a run says, whatever the task."""
    report = result.report
    for side in ("dense", "compact"):
        figures = report[side]
        assert figures["metric"] == metric and isinstance(figures["value"], float)
        assert ("accuracy" in figures) == ("ece" in figures) == (metric == "accuracy")
    assert report["comparison"]["metric"] == metric and report["comparison"]["images"] > 0
    assert report["reduction"]["macs"] > 0.3
    return report


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ard", "gaussian"])
def test_pixels(method: str) -> None:
    images, masks = shapes(200)
    masks[:, 0] = 255  # nobody says what the first row is
    torch.manual_seed(0)
    result = pb.compress(UNet(), (images, masks), method, target_macs=0.5, epochs=24, **RUN)
    report = checked(result, "mean IoU")
    assert report["task"] == "segmentation" and report["comparison"]["test"] == "paired bootstrap"
    assert report["dense"]["value"] > 0.6 and report["compact"]["value"] > 0.5
    assert result.compact(images[:2]).shape == (2, 3, 12, 12)
    assert report["settings"]["distillation"] > 0 or report["settings"]["teacher"]


def convolutions(outputs: int, inputs: int = 1) -> nn.Sequential:
    return nn.Sequential(
        block(inputs, 8), nn.MaxPool2d(2), block(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, outputs)
    )


def test_numbers(tmp_path: Any) -> None:
    torch.manual_seed(0)
    images = torch.randn(200, 1, 6, 6)
    means = 6 * images.mean((1, 2, 3))
    data = pb.load_data((images, means))
    run = {"target_macs": 0.6, "epochs": 20, "out": tmp_path / "run", **RUN}
    result = pb.compress(convolutions(1), data, "l1", **run)
    report = checked(result, "RMSE")
    assert report["dense"]["value"] < 0.9 * float(means.std())
    again = pb.compress(convolutions(1), data, "l1", resume=True, **run)
    assert again.report["compact"]["value"] == report["compact"]["value"]
    assert {"metric", "value"} <= report["validation"].keys() | report["dense"].keys()


def test_a_drop_is_in_the_units_of_the_metric() -> None:
    torch.manual_seed(0)
    images = torch.randn(200, 1, 6, 6)
    result = pb.compress(convolutions(1), (images, images.mean((1, 2, 3)) * 10), "ard", max_drop=0.5, epochs=30, **RUN)
    report = checked(result, "RMSE")
    validation = report["validation"]
    assert validation["dense"] > 0 and validation["compact"] <= validation["dense"] + 0.5 + 1e-6


def test_labels() -> None:
    torch.manual_seed(0)
    images = torch.randn(200, 1, 6, 6)
    targets = torch.stack([images.mean((1, 2, 3)) > 0, images[:, 0, :3].mean((1, 2)) > 0], 1).int()
    result = pb.compress(convolutions(2), (images, targets), "l1", task="multilabel", target_macs=0.6, epochs=20, **RUN)
    assert checked(result, "F1")["dense"]["value"] > 0.7


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(1, 8), block(8, 8))
        self.head = nn.Linear(16, 2)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        found = [self.body(x).mean((2, 3)) for x in (a, b)]
        return {"features": found[0], "logits": self.head(torch.cat(found, 1))}


def test_two_inputs(tmp_path: Any) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(160, 1, 6, 6), torch.randn(160, 1, 6, 6)
    y = (a.mean((1, 2, 3)) > b.mean((1, 2, 3))).long()
    result = pb.compress(Siamese(), ((a, b), y), "l1", target_macs=0.6, epochs=20, out=tmp_path / "run", **RUN)
    report = checked(result, "accuracy")
    assert report["dense"]["accuracy"] > 0.6 and type(result.compact) is Siamese
    assert result.compact(a[:3], b[:3])["logits"].shape == (3, 2)
    small = pb.load_compact(tmp_path / "run", factory=Siamese)
    assert torch.allclose(small(a[:3], b[:3])["logits"], result.compact(a[:3], b[:3])["logits"])


def test_a_call_of_its_own() -> None:
    """A network that takes its picture twice and returns what no rule would find."""
    torch.manual_seed(0)
    a = torch.randn(120, 1, 6, 6)
    y = (a.mean((1, 2, 3)) > 0).long()
    usual = classification()
    task = Task(usual.name, usual.likelihood, usual.metric, usual.divergence, call=lambda net, x: net(x, -x)["logits"])
    result = pb.compress(Siamese(), TensorDataset(a, y), "l1", task=task, target_macs=0.6, epochs=6, **RUN)
    assert checked(result, "accuracy")["comparison"]["test"] == "McNemar"


def test_tasks_that_do_not_fit() -> None:
    images = torch.randn(40, 1, 6, 6)
    for net, targets, options, message in (
        (convolutions(3), torch.randn(40), {}, r"regression needs targets \[1\] for each image"),
        (convolutions(2), torch.arange(40) % 2, {"task": "regression_"}, "expected a task of"),
        (UNet(), torch.arange(40) % 2, {}, "expected logits of shape"),
        (convolutions(2), torch.arange(40) % 2, {"task": regression()}, "shape"),
    ):
        with pytest.raises(pb.PyrobnnError, match=message):
            pb.compress(net, (images, targets), "l1", target_macs=0.6, epochs=3, **options, **RUN)
