"""Computed from the images and labels of a data set: normalisation, validation split, fingerprint."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from pyrobnn.data.split import Split
from pyrobnn.data.stream import StreamedImages


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of images ``[N, C, H, W]``; uint8 counts as 0-1.

    A channel that is constant gets a standard deviation of 1, so that it can be divided by.

    >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    ((0.5,), (0.5,))
    """
    means, stds = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].numpy()
        if images.dtype == torch.uint8:
            # From the histogram: exact, and it needs no copy of the images as floats.
            counts = np.bincount(pixels.reshape(-1), minlength=256)
            values = np.arange(256) / 255.0
            mean = float(np.average(values, weights=counts))
            variance = float(np.average((values - mean) ** 2, weights=counts))
        else:
            mean = float(pixels.mean(dtype=np.float64))
            variance = float(pixels.var(dtype=np.float64))
        means.append(mean)
        stds.append(variance**0.5 if variance > 1e-12 else 1.0)
    return tuple(means), tuple(stds)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sets aside the same fraction of every class.

    Args:
        labels: ``[N]`` int64.
        fraction: Share to set aside; a class of two or more images gives at least one and keeps at least one.
        seed: Decides which; the caller's random state is not touched.

    Returns:
        Sorted row numbers of what stays and of what is set aside.

    >>> kept, aside = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
    >>> len(kept), len(aside)
    (6, 2)
    """
    generator = torch.Generator().manual_seed(seed)
    classes, sizes = labels.unique(return_counts=True)
    quota = sizes.double() * fraction
    wanted = quota.floor().long()
    # Largest remainders, so that the parts add up: 6,000 of the 60,000 MNIST images, not 5,999.
    left = round(len(labels) * fraction) - int(wanted.sum())
    wanted[(quota - wanted).argsort(descending=True, stable=True)[: max(left, 0)]] += 1
    if fraction > 0:
        wanted = torch.where(sizes > 1, torch.minimum(wanted.clamp(min=1), sizes - 1), 0)
    aside = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in zip(classes.tolist(), wanted.tolist(), strict=True):
        rows = (labels == label).nonzero().flatten()
        aside[rows[torch.randperm(len(rows), generator=generator)[:number]]] = True
    return (~aside).nonzero().flatten(), aside.nonzero().flatten()


def fingerprint(*splits: Split) -> str:
    """Twelve hexadecimal digits from all labels and up to 256 evenly spaced images of each split."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"{tuple(split.images.shape)} {split.images.dtype}".encode())
        if len(split):
            images = split.take(256).images
            digest.update(np.ascontiguousarray(images[: len(images)].numpy()).tobytes())
        if isinstance(split.images, StreamedImages):
            digest.update("\n".join(split.images.state()).encode())
        digest.update(split.labels.numpy().tobytes())
    return digest.hexdigest()[:12]
