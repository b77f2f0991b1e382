"""Arrays and tensors of images: conversion to the package's own dtype and layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.data.notes import Notes
from pyrobnn.data.raw import COMMON_CHANNELS, Part, Raw, as_float32
from pyrobnn.errors import DataError


def is_array(value: Any) -> bool:
    """Whether this is a whole array of images or targets."""
    return isinstance(value, Tensor | np.ndarray)


def tensor_pixels(images: Tensor, where: str, notes: Notes, signals: bool = False) -> np.ndarray:
    """A tensor of images ``[N, C, ...]`` (or grey ones ``[N, H, W]``) as uint8, uint16 or float32."""
    if images.layout != torch.strided or images.is_meta:
        raise DataError(
            f"{where}: expected an ordinary tensor of images, got a sparse one or one without values: use .to_dense()"
        )
    if images.ndim == 3 and not signals:
        images = images[:, None]
    if images.ndim < 3:
        raise DataError(f"{where}: expected an image tensor [N, C, H, W], got shape {tuple(images.shape)}")
    return image_values(checked_layout(images, images.shape[1:], where, notes).detach().cpu(), where)


def checked_layout(images: Tensor, shape: torch.Size, where: str, notes: Notes) -> Tensor:
    """Tensors are channels first by convention; the other way round is worth a word."""
    if len(shape) == 3 and shape[0] not in COMMON_CHANNELS and shape[2] in COMMON_CHANNELS and shape[0] == shape[1]:
        notes.add(
            f"tensors are read as [C, H, W] = {list(shape)}: use .movedim(-1, -3) if the channels come last", where
        )
    return images


def image_values(images: Tensor, where: str) -> np.ndarray:
    """The values as uint8 (also of bool), uint16 or float32."""
    if images.dtype == torch.bool:
        return images.numpy().astype(np.uint8) * 255
    if images.dtype in (torch.uint8, torch.uint16):
        return images.numpy()
    if images.is_floating_point():
        return as_float32(images.double().numpy() if images.dtype == torch.bfloat16 else images.numpy(), where)
    raise DataError(
        f"{where}: expected uint8 or float images, got {images.dtype}; use .to(torch.uint8) if all values are 0-255, else "
        ".to(torch.uint16)"
    )


def resize_all(raw: Raw, size: int) -> Raw:
    """Images that are in memory, brought to one square size."""
    changed = {
        name: None if part is None else Part(resized_tensor(part.images, size), part.targets)
        for name, part in (("train", raw.train), ("valid", raw.valid), ("test", raw.test))
    }
    assert changed["train"] is not None
    return Raw(changed["train"], changed["valid"], changed["test"], raw.classes, raw.task, f"resized to {size}x{size}")


def resized_tensor(images: Any, size: int) -> Tensor:
    """Images ``[N, C, H, W]`` with the shorter side at `size` and the middle cut out square."""
    from torchvision.transforms.v2 import functional as TF

    if images.ndim != 4:
        raise DataError(f"image_size is for images [N, C, H, W], got shape {tuple(images.shape)}: leave it out")
    if tuple(images.shape[2:]) == (size, size):
        return images
    return torch.cat(
        [TF.center_crop(TF.resize(part, [size], antialias=True), [size, size]) for part in images.split(512)]
    )
