"""Augmentation of whole batches, on raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrobnn.errors import DataError

if TYPE_CHECKING:
    from pyrobnn.data.stream import Transform


@dataclass(frozen=True)
class Augment:
    """Random shifts, mirror images and hidden squares, drawn per example.

    Attributes:
        shift: Largest shift in pixels, both ways on both axes. What moves in is zero in raw pixel values, so
            ``Augment(shift=4, flip=True)`` is the pad, crop and flip of the CIFAR recipes.
        flip: Mirror left-right with probability one half.
        cutout: Side in pixels of a square that is hidden (DeVries and Taylor 2017, "cutout"), all of it inside the
            image. It gets the mean colour of its image, so that nothing depends on how pixels are normalised.
        crop: Smallest share of the area that a random resized crop keeps (0.08 in the ImageNet recipes), 0 for none:
            torchvision's `v2.RandomResizedCrop`. Streamed pictures are cropped in their own size, before they are
            made alike.
        colour: Strength of torchvision's `v2.ColorJitter` (brightness, contrast, saturation), 0 for none.
        mix: ``"mixup"`` (Zhang et al. 2018) puts a random share of another image of the batch over each image,
            ``"cutmix"`` (Yun et al. 2019) a rectangle of it; ``""`` nothing. Targets stay those of the first image, so
            this is for losses that do not use them, such as distillation alone (Beyer et al. 2022).

    Raises:
        DataError: `shift` or `cutout` is negative or no whole number, `crop` or `colour` is not from 0 to 1, no such
            `mix`.

    >>> Augment(shift=1)(torch.ones(2, 1, 3, 3), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 3, 3])
    """

    shift: int = 0
    flip: bool = False
    cutout: int = 0
    crop: float = 0.0
    colour: float = 0.0
    mix: str = ""

    def __post_init__(self) -> None:
        if self.mix not in ("", *_MIXES):
            raise DataError(f"mix is one of {', '.join(_MIXES)}, got {self.mix!r}")
        for name in ("crop", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is a share from 0 to 1, got {getattr(self, name)!r}")
        for name in ("shift", "cutout"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise DataError(f"{name} is in whole pixels, 0 or more, got {value!r}")

    @classmethod
    def parse(cls, text: str) -> Augment | None:
        """From words such as ``shift=4,flip,cutout=8``; None from ``none``.

        Raises:
            DataError: A word that means nothing.

        >>> Augment.parse("shift=4,flip")
        Augment(shift=4, flip=True, cutout=0, crop=0.0, colour=0.0, mix='')
        """
        if text.strip() == "none":
            return None
        kinds = {"shift": int, "flip": bool, "cutout": int, "crop": float, "colour": float}
        found: dict[str, Any] = {}
        for word in text.split(","):
            name, _, value = (part.strip() for part in word.partition("="))
            try:
                if kinds[name] is bool and value:
                    raise ValueError("flip is a word of its own")
                found[name] = kinds[name] is bool or kinds[name](value)
            except (KeyError, ValueError) as error:
                raise DataError(
                    f"augmentation is none, auto, or such as shift=4,flip,cutout=8,crop=0.08,colour=0.4; got {word!r}"
                ) from error
        return cls(**found)

    @property
    def views(self) -> int:
        """Versions of an image that differ by more than a shift or a hidden square: 2 with mirror images, else 1."""
        return 2 if self.flip else 1

    @property
    def moves(self) -> bool:
        """Whether anything but a mirror image changes the place of pixels."""
        return bool(self.shift or self.crop)

    def transform(self, size: Sequence[int]) -> Transform | None:
        """What is done to single images, from a seed each: crop and colour; None if neither is asked for.

        Args:
            size: ``(H, W)`` of what comes out.
        """
        if not self.crop and not self.colour:
            return None
        from torchvision.transforms import v2

        steps: list[torch.nn.Module] = []
        if self.crop:
            steps.append(v2.RandomResizedCrop(list(size), scale=(self.crop, 1.0), antialias=True))
        else:
            steps += [v2.Resize(min(size), antialias=True), v2.CenterCrop(list(size))]
        if self.colour:
            steps.append(v2.ColorJitter(self.colour, self.colour, self.colour))
        chain = v2.Compose(steps)

        def apply(image: Tensor, seed: int) -> Tensor:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return chain(image)

        return apply

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augments one batch, crop and colour apart (see :meth:`transform`).

        Args:
            images: ``[B, C, H, W]`` raw pixels of any dtype, on any device.
            generator: The source of all randomness. On whatever device the images are, a CPU generator gives
                the same draws.

        Returns:
            A tensor of the same shape and dtype; the images given are not changed.
        """
        return self.draw(images, generator)[0]

    def draw(
        self,
        images: Tensor,
        generator: torch.Generator,
        mirrored: Tensor | None = None,
        *,
        place: slice = slice(None),
        total: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The augmented batch, and which images are mirrored (``[B]`` bool; None without `flip`).

        Which ones are is drawn, unless `mirrored` says it. Of a batch of `total` images of which these have the `place`,
        they get what the whole batch would have given them, and the generator moves as far.
        """
        total = len(images) if total is None else total
        if self.shift:
            images = _shift(images, self.shift, generator, place, total)
        if self.cutout:
            images = _hide(images, self.cutout, generator, place, total)
        if self.flip:
            if mirrored is None:
                mirrored = (torch.rand(total, generator=generator, device=generator.device) < 0.5)[place]
            mirrored = mirrored.to(images.device)
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        if self.mix:
            images = _MIXES[self.mix](images, generator, place, total)
        return images, mirrored if self.flip else None


def turned(targets: Tensor, mirrored: Tensor | None) -> Tensor:
    """Targets of mirrored images: classes per pixel ``[B, H, W]`` are mirrored too, others stay."""
    if mirrored is None or targets.ndim < 3:
        return targets
    return torch.where(mirrored.view(-1, *(1,) * (targets.ndim - 1)), targets.flip(-1), targets)


def _shift(images: Tensor, reach: int, generator: torch.Generator, place: slice, total: int) -> Tensor:
    """Pads with zeros, then reads one window per example through three broadcast index vectors."""
    count, _, height, width = images.shape
    device = images.device
    padded = torch.nn.functional.pad(images, (reach, reach, reach, reach))
    draws = torch.randint(0, 2 * reach + 1, (2, total, 1), generator=generator, device=generator.device)
    offsets = draws[:, place].to(device)
    rows = offsets[0] + torch.arange(height, device=device)  # [B, H]
    columns = offsets[1] + torch.arange(width, device=device)  # [B, W]
    example = torch.arange(count, device=device).view(-1, 1, 1)
    # Channels last while indexing, so that each gathered element is a run of C values.
    window = padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]]
    return window.permute(0, 3, 1, 2)


def _hide(images: Tensor, side: int, generator: torch.Generator, place: slice, total: int) -> Tensor:
    """Fills one square per example, cut off where the image is smaller, with the mean of each channel."""
    height, width = images.shape[2:]
    covered = []
    for length in (height, width):
        span = min(side, length)
        start = torch.randint(0, length - span + 1, (total, 1), generator=generator, device=generator.device)[place]
        distance = torch.arange(length, device=images.device) - start.to(images.device)
        covered.append((distance >= 0) & (distance < span))
    square = covered[0][:, None, :, None] & covered[1][:, None, None, :]  # [B, 1, H, W]
    return torch.where(square, images.mean((2, 3), keepdim=True, dtype=torch.float32).to(images.dtype), images)


def _mixup(images: Tensor, generator: torch.Generator, place: slice, total: int) -> Tensor:
    """Each image and another one of the batch, in a uniform proportion."""
    order, share = _partners(images, generator, place, total)
    mixed = torch.lerp(images.float(), images[order].float(), share.view(-1, 1, 1, 1))
    return mixed.to(images.dtype) if images.is_floating_point() else mixed.round().to(images.dtype)


def _cutmix(images: Tensor, generator: torch.Generator, place: slice, total: int) -> Tensor:
    """Each image with a rectangle of another one: of its shape, of a uniform share of its area where it does not leave it."""
    order, share = _partners(images, generator, place, total)
    covered = []
    for length in images.shape[2:]:
        middle = torch.rand(total, generator=generator, device=generator.device)[place].to(images.device) * length
        reach = 0.5 * length * share.sqrt()
        pixels = torch.arange(length, device=images.device) + 0.5
        covered.append((pixels - middle[:, None]).abs() < reach[:, None])
    return torch.where(covered[0][:, None, :, None] & covered[1][:, None, None, :], images[order], images)


def _partners(images: Tensor, generator: torch.Generator, place: slice, total: int) -> tuple[Tensor, Tensor]:
    """Which image comes over each, and how much of it; partners are of the part of the batch that is here."""
    order = torch.randperm(total, generator=generator, device=generator.device)[place].argsort().argsort()
    share = torch.rand(total, generator=generator, device=generator.device)[place]
    return order.to(images.device), share.to(images.device)


_MIXES = {"mixup": _mixup, "cutmix": _cutmix}
