"""What accuracy does not show: where dense and compact disagree, and how both bear noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyrobnn.data import Split
from pyrobnn.report.metrics import agreement, noise_accuracy, predict_logits


def robustness(dense: nn.Module, compact: nn.Module, split: Split, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Agreement of two networks, and the accuracy of both under Gaussian pixel noise, in fp32.

    Args:
        dense, compact: plain networks with the same inputs and classes.
        split: labelled images.
        device: where to measure.

    Returns:
        `{"agreement": share of images on which both name one class, "noise": [{"sigma", "dense",
        "compact"}, …]}`, sigma on the pixel scale 0-1. Both networks see the same noisy images.
    """
    nets = {"dense": dense.to(device), "compact": compact.to(device)}
    logits = {name: predict_logits(net, split, device=device)[0] for name, net in nets.items()}
    noisy = {name: noise_accuracy(net, split, device=device) for name, net in nets.items()}
    return {
        "agreement": agreement(logits["dense"], logits["compact"]),
        "noise": [
            {"sigma": sigma, "dense": accuracy, "compact": noisy["compact"][sigma]}
            for sigma, accuracy in noisy["dense"].items()
        ],
    }
