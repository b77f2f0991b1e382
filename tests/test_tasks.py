"""Tasks: which one data is for, and how a teacher speaks for each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from pyrobnn.data import load_data
from pyrobnn.errors import ConfigError
from pyrobnn.inference.terms import Distillation
from pyrobnn.tasks import Task, softened_classes, softened_labels, squared_error, task_for


def test_the_task_of_data() -> None:
    images = torch.rand(40, 1, 6, 5)
    assert task_for(load_data("digits")).name == "classification"
    assert task_for(load_data((images, torch.randn(40, 2)))).metric.name == "RMSE"
    masks = load_data((images, torch.randint(3, (40, 6, 5))))
    assert task_for(masks).name == "segmentation" and task_for(masks, "segmentation").metric.name == "mean IoU"
    assert task_for(load_data((images, torch.randint(2, (40, 3))), task="multilabel")).metric.name == "F1"
    digits = load_data("digits")
    by_hand = replace(digits, train=replace(digits.train, labels=digits.train.labels[:, None] / 9))
    assert task_for(by_hand).name == "regression"
    own = Task("mine", task_for(digits).likelihood, task_for(digits).metric)
    assert task_for(digits, own) is own
    with pytest.raises(ConfigError, match="targets for classification, got task='regression'"):
        task_for(digits, "regression")


def test_softened_classes_are_those_of_distillation() -> None:
    taught, output, y = torch.randn(8, 5), torch.randn(8, 5), torch.zeros(8)
    old = Distillation(torch.nn.Identity(), weight=1.0, temperature=3.0).divergence(taught, output)
    torch.testing.assert_close(softened_classes(taught, output, y, 3.0), old)
    pixels = softened_classes(taught.view(2, 4, 5).movedim(2, 1), output.view(2, 4, 5).movedim(2, 1), y, 3.0)
    torch.testing.assert_close(pixels, old)
    one = softened_classes(taught[:, :1], output[:, :1], y, 1.0)
    torch.testing.assert_close(
        one, kl_divergence(Bernoulli(logits=taught[:, 0]), Bernoulli(logits=output[:, 0])).mean()
    )


def test_softened_labels_and_squared_error_are_divergences() -> None:
    taught, output, y = torch.randn(8, 5), torch.randn(8, 5), torch.randn(8, 5)
    expected = 4 * kl_divergence(Bernoulli(logits=taught / 2), Bernoulli(logits=output / 2)).sum(1).mean()
    torch.testing.assert_close(softened_labels(taught, output, y, 2.0), expected)
    scale = (y - taught).square().mean().sqrt()
    expected = kl_divergence(Normal(taught, scale), Normal(output, scale)).sum(1).mean()
    torch.testing.assert_close(squared_error(taught, output, y, 1.0), expected)
    assert torch.isfinite(squared_error(y, output, y, 1.0))  # a teacher without residuals
    assert float(squared_error(taught, taught, y, 1.0)) == 0.0
