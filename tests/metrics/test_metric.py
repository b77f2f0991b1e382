"""Metrics as functions of means over examples, against brute force and scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from pyrobnn.data import Split
from pyrobnn.errors import DataError, NumericalError
from pyrobnn.metrics.evaluate import evaluate
from pyrobnn.metrics.metric import Metric, accuracy, f1, mean_iou, measured, rmse, statistics_of


def of(metric: Metric, output: torch.Tensor, targets: torch.Tensor) -> float:
    return float(metric.value(statistics_of(metric, output, targets).mean(0)))


def test_accuracy_of_many_classes_and_of_one_logit() -> None:
    logits, labels = torch.randn(50, 4), torch.randint(4, (50,))
    assert of(accuracy(), logits, labels) == pytest.approx((logits.argmax(1) == labels).double().mean())
    one, two = torch.randn(50, 1), torch.randint(2, (50,))
    assert of(accuracy(), one, two) == pytest.approx(((one[:, 0] > 0).long() == two).double().mean())


def test_mean_iou_against_sets_of_pixels() -> None:
    logits, labels = torch.randn(6, 5, 4, 3), torch.randint(4, (6, 4, 3))
    labels[0, 0], labels[1, 2, 1] = -100, -100
    logits[:, 4] = -9  # a class that occurs in neither
    predicted, pixels = logits.argmax(1), [(b, i, j) for b in range(6) for i in range(4) for j in range(3)]
    valid = [p for p in pixels if labels[p] != -100]
    ratios = []
    for k in range(5):
        said, true = {p for p in valid if predicted[p] == k}, {p for p in valid if labels[p] == k}
        if said | true:
            ratios.append(len(said & true) / len(said | true))
    assert len(ratios) == 4
    assert of(mean_iou(5), logits, labels) == pytest.approx(sum(ratios) / 4)


def test_f1_and_rmse_against_libraries() -> None:
    logits, targets = torch.randn(40, 3), (torch.rand(40, 3) < 0.3).float()
    assert of(f1(), logits, targets) == pytest.approx(
        f1_score(targets.numpy(), (logits > 0).int().numpy(), average="micro")
    )
    assert of(f1(), -torch.ones(4, 2), torch.zeros(4, 2)) == 1.0
    output, values = torch.randn(40, 2), torch.randn(40, 2)
    assert of(rmse(), output, values) == pytest.approx(float((output - values).square().mean().sqrt()), rel=1e-6)


def test_gains_are_in_the_units_of_max_drop() -> None:
    assert accuracy().gain(0.5) == 50 and accuracy().figure(accuracy().score(0.3)) == accuracy().score(0.3) == 0.3
    assert rmse().gain(2.0) == -2 and rmse().score(2.0) == -0.02 and rmse().figure(-0.02) == 2
    assert accuracy().words(0.5) == "50.00 %" and rmse().words(2.0) == "2"


def test_standard_error_of_accuracy_is_the_binomial_one() -> None:
    statistics = (torch.rand(400, 1) < 0.8).double()
    share = float(statistics.mean())
    assert accuracy().standard_error(statistics, draws=2000) == pytest.approx(
        100 * (share * (1 - share) / 400) ** 0.5, rel=0.07
    )


def test_measured_is_evaluate() -> None:
    split = Split(torch.randn(30, 1, 3, 3), torch.randint(3, (30,)), (0.0,), (1.0,))
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    value, statistics = measured(net, split, accuracy(), batch_size=7)
    assert value == evaluate(net, split).accuracy and statistics.shape == (30, 1)
    with pytest.raises(DataError, match="at least one example"):
        measured(net, split.select(torch.arange(0)), accuracy())
    with pytest.raises(DataError, match="F1 does not fit outputs"):
        measured(net, split, f1())
    with torch.no_grad():
        net[1].bias[0] = float("nan")
    with pytest.raises(NumericalError, match="finite outputs"):
        measured(net, split, accuracy())
