"""Agreement of the dense and the compact network, and their accuracy under noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.data import Split
from pyrobnn.metrics.evaluate import agreement, noise_accuracy, predict_logits


def robustness(
    dense: nn.Module,
    compact: nn.Module,
    split: Split,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    logits: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Agreement of two networks, and the accuracy of both under Gaussian pixel noise.

    Args:
        dense, compact: plain networks with the same inputs and classes.
        split: labelled images.
        device: where to measure.
        precision: `"fp32"` or `"bf16"`, of the passes with noise.
        logits: what `"dense"` and `"compact"` say of the split in fp32, `[N, K]` each, where that is known.

    Returns:
        `{"agreement": share of images on which both name one class, "noise": [{"sigma", "dense",
        "compact"}, …], "precision"}`, sigma on the pixel scale 0-1. Both networks see the same noisy images.
    """
    nets = {"dense": dense.to(device), "compact": compact.to(device)}
    if logits is None:
        logits = {name: predict_logits(net, split, device=device, channels_last=True)[0] for name, net in nets.items()}
    noisy = {
        name: noise_accuracy(net, split, device=device, precision=precision, channels_last=True)
        for name, net in nets.items()
    }
    return {
        "agreement": agreement(logits["dense"], logits["compact"]),
        "noise": [
            {"sigma": sigma, "dense": accuracy, "compact": noisy["compact"][sigma]}
            for sigma, accuracy in noisy["dense"].items()
        ],
        "precision": precision,
    }
