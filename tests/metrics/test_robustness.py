"""Agreement and noise figures against nets whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.metrics.evaluate import NOISE_SIGMAS
from pyrobnn.metrics.robustness import robustness
from pyrobnn.report.page import page


class Threshold(nn.Module):
    """Class 1 where the first pixel, on the normalised scale, is above a line."""

    def __init__(self, line: float) -> None:
        super().__init__()
        self.line = nn.Parameter(torch.tensor(line))

    def forward(self, x: Tensor) -> Tensor:
        margin = x[:, 0, 0, 0] - self.line
        return torch.stack([-margin, margin], 1)


def test_agreement_and_noise_by_hand() -> None:
    n = 4000
    value = torch.linspace(0, 1, n)
    labels = (value > 0.5).long()
    images = value.view(n, 1, 1, 1)
    split = pb.load_data(((images, labels), (images, labels)), valid_fraction=0, mean=(0.0,), std=(1.0,)).test
    good, shifted = Threshold(0.5), Threshold(0.6)
    found = robustness(good, shifted, split)
    assert found["agreement"] == pytest.approx(0.9, abs=1e-3)  # they differ between 0.5 and 0.6
    assert [row["sigma"] for row in found["noise"]] == list(NOISE_SIGMAS)
    for row in found["noise"]:
        # P(wrong) = mean over values of Phi(-|v - 1/2| / sigma), by quadrature.
        wrong = torch.special.ndtr(-(value - 0.5).abs() / row["sigma"]).mean()
        assert row["dense"] == pytest.approx(1 - float(wrong), abs=0.01)
        assert row["compact"] < row["dense"] - 0.03


def test_known_answers_are_not_asked_for_again() -> None:
    images = torch.linspace(0, 1, 100).view(-1, 1, 1, 1)
    labels = (images.flatten() > 0.5).long()
    split = pb.load_data(((images, labels), (images, labels)), valid_fraction=0, mean=(0.0,), std=(1.0,)).test
    net = Threshold(0.5)
    said = {"dense": torch.eye(2)[labels], "compact": torch.eye(2)[torch.zeros_like(labels)]}
    assert robustness(net, net, split, logits=said)["agreement"] == 0.5
    found = robustness(net, net, split, precision="bf16")
    assert found["precision"] == "bf16" and "in bf16" in page({"robustness": found})
    assert "in bf16" not in page({"robustness": robustness(net, net, split)})


def test_the_page_shows_them() -> None:
    noise = [{"sigma": 0.1, "dense": 0.98, "compact": 0.913}]
    report = {
        "compact": {"accuracy": 0.97, "nll": 0.11, "ece": 0.02},
        "robustness": {"agreement": 0.9871, "noise": noise},
        "bayesian": {"accuracy": 0.975, "nll": 0.0876, "ece": 0.011, "draws": 50, "kl_weight": 1.0},
    }
    text = page(report).replace("\N{NO-BREAK SPACE}", " ")
    for shown in ("98.71 %", "σ = 0.1", "91.30 %", "−6.70 points", "0.0876", "50 draws"):
        assert shown in text
    assert "same class" not in page({"compact": {}}) and "posterior of the compact" not in page({"compact": {}})
