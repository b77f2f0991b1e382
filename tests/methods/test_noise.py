"""Channel noise: what a channel is worth, and the same road through branched networks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides.noise_balance import ard_loss


@pytest.mark.parametrize("weight", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("curvature", [200.0, 2000.0])
def test_ard_loss_is_the_quadratic_loss_whatever_the_price(weight: float, curvature: float) -> None:
    mu = 0.9

    def objective(log_sigma: float) -> float:
        square = torch.tensor(2 * log_sigma, dtype=torch.float64).exp()
        return float(0.5 * curvature * square + weight * 0.5 * torch.log1p(mu**2 / square))

    best = minimize_scalar(objective, bounds=(-8.0, 0.0), method="bounded", options={"xatol": 1e-10})
    snr = torch.tensor(mu / math.exp(best.x), dtype=torch.float64)
    assert ard_loss(snr, weight) == pytest.approx(0.5 * curvature * mu**2, rel=1e-5)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.a, self.norm_a = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.b, self.norm_b = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 6, 1)
        self.c = nn.Conv2d(14, 10, 3, padding=1)
        self.head = nn.Linear(10 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        x = nn.functional.avg_pool2d(torch.relu(self.c(x)), 4)
        return self.head(x.flatten(1))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.norm_d = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.pointwise, self.norm_p = nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.norm_d(self.depthwise(x)))
        x = nn.functional.max_pool2d(torch.relu(self.norm_p(self.pointwise(x))), 4)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("method", ["ard", "sbp", "rbp"])
@pytest.mark.parametrize("build", [Residual, Concat, Depthwise])
def test_one_road_for_branched_networks(build: type[nn.Module], method: str) -> None:
    full = pb.load_data("digits")
    data = replace(full, train=full.train.take(400))
    torch.manual_seed(0)
    result = pb.compress(build(), data, method, target_macs=0.5, epochs=12, progress=False)
    compact = result.report["compact"]
    assert compact["macs"] <= 0.5 * result.report["dense"]["macs"]
    assert all(width >= 1 for width in compact["widths"].values())
    assert compact["accuracy"] > 0.4  # chance is 0.1
    noise = [site for site in result.posterior.sites.values() if site.kind == "channel"]
    assert {site.group for site in noise} == set(result.plan.keep)  # every group had its noise, residual ones too


def test_noise_of_every_group_is_read_once_per_round() -> None:
    full = pb.load_data("digits")
    data = replace(full, train=full.train.take(300))
    result = pb.compress("small_cnn", data, "ard", target_macs=0.5, epochs=8, progress=False)
    rounds = len(result.report["rounds"])
    assert len(result.posterior.history) == rounds
    for record in result.posterior.history:
        assert set(record) == set(result.plan.keep)
