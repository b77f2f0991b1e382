"""Shifts and flips against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyrobnn.data import Augment, load_data
from pyrobnn.errors import DataError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_shifts(image: Tensor, reach: int) -> list[Tensor]:
    """Every window of the zero-padded image, one by one."""
    _, height, width = image.shape
    padded = F.pad(image, (reach, reach, reach, reach))
    steps = range(2 * reach + 1)
    return [padded[:, top : top + height, left : left + width] for top in steps for left in steps]


def test_every_shift_occurs_and_nothing_else() -> None:
    image = torch.randint(1, 256, (3, 5, 6), dtype=torch.uint8)
    batch = image.expand(2000, -1, -1, -1)
    out = Augment(shift=2)(batch, generator())
    assert out.dtype == torch.uint8 and out.shape == batch.shape
    windows = torch.stack(all_shifts(image, 2))
    same = (out[:, None] == windows[None]).flatten(2).all(2)  # [2000, 25]
    assert bool((same.sum(1) == 1).all())
    counts = same.sum(0)
    # 80 of each are expected; five standard deviations of a binomial are 44.
    assert int(counts.min()) > 36 and int(counts.max()) < 124


def test_flip_mirrors_half_of_the_images() -> None:
    batch = torch.arange(4000 * 6).view(4000, 1, 2, 3).float()
    out = Augment(flip=True)(batch, generator())
    kept = (out == batch).flatten(1).all(1)
    mirrored = (out == batch.flip(3)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert abs(int(mirrored.sum()) - 2000) < 5 * 32  # a standard deviation is 31.6


def test_which_images_are_mirrored_can_be_said() -> None:
    batch, sides = torch.rand(6, 1, 3, 4), torch.tensor([True, False, False, True, True, False])
    out, mirrored = Augment(flip=True).draw(batch, generator(), sides)
    assert mirrored is not None and torch.equal(mirrored, sides)
    assert torch.equal(out[sides], batch[sides].flip(3)) and torch.equal(out[~sides], batch[~sides])
    same, none = Augment().draw(batch, generator(), sides)
    assert same is batch and none is None


def test_images_of_a_batch_are_treated_apart_and_left_alone() -> None:
    batch = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    before = batch.clone()
    one = Augment(shift=2, flip=True)(batch, generator(1))
    assert torch.equal(batch, before)
    assert torch.equal(one, Augment(shift=2, flip=True)(batch, generator(1)))
    assert not torch.equal(one, Augment(shift=2, flip=True)(batch, generator(2)))


def test_cutout_hides_every_square_inside_the_image_and_nothing_else() -> None:
    image = torch.randint(0, 256, (3, 5, 4), dtype=torch.uint8)
    batch = image.expand(2000, -1, -1, -1)
    out = Augment(cutout=2)(batch, generator())
    assert out.dtype == torch.uint8
    colour = image.double().mean((1, 2)).floor().to(torch.uint8)
    squares = []
    for top in range(4):
        for left in range(3):
            square = image.clone()
            square[:, top : top + 2, left : left + 2] = colour[:, None, None]
            squares.append(square)
    same = (out[:, None] == torch.stack(squares)[None]).flatten(2).all(2)  # [2000, 12]
    assert bool((same.sum(1) == 1).all())
    # 167 of each are expected; five standard deviations of a binomial are 62.
    assert int(same.sum(0).min()) > 105 and int(same.sum(0).max()) < 229


def test_cutout_larger_than_the_image_hides_all_of_it() -> None:
    batch = torch.rand(3, 2, 4, 6)
    out = Augment(cutout=9)(batch, generator())
    torch.testing.assert_close(out, batch.mean((2, 3), keepdim=True).expand_as(batch))


def test_words_for_augmentation() -> None:
    assert Augment.parse("shift=4,flip, cutout=8") == Augment(shift=4, flip=True, cutout=8)
    assert Augment.parse("crop=0.08,colour=0.4") == Augment(crop=0.08, colour=0.4)
    assert Augment.parse("none") is None
    for text in ("shift", "turn=3", "shift=a", "flip=no", "", "crop=2", "shift=-1"):
        with pytest.raises(DataError, match=r"augmentation is none|a share from 0 to 1|whole pixels"):
            Augment.parse(text)
    assert load_data("digits", augment="shift=1").augmentation == Augment(shift=1)
    assert load_data("digits", augment="none").augmentation is None


def test_no_augmentation_is_the_identity() -> None:
    batch = torch.rand(2, 1, 4, 4)
    assert Augment()(batch, generator()) is batch


def test_mixup_is_a_share_of_each_of_two_images() -> None:
    """Images of one colour each: what comes out is between its own and a partner's, in a uniform proportion."""
    batch = torch.arange(3000.0).view(-1, 1, 1, 1).expand(-1, 2, 4, 4)
    out = Augment(mix="mixup")(batch, generator())
    assert bool((out == out[:, :1, :1, :1]).all())
    order = torch.randperm(3000, generator=generator())
    moved = (out[:, 0, 0, 0] - batch[:, 0, 0, 0]) / (order - torch.arange(3000)).float()
    share = moved[order != torch.arange(3000)]
    assert float(share.min()) >= 0 and float(share.max()) <= 1
    assert abs(float(share.mean()) - 0.5) < 0.03 and abs(float(share.var()) - 1 / 12) < 0.01
    whole = Augment(mix="mixup")(torch.randint(0, 256, (8, 1, 3, 3), dtype=torch.uint8), generator())
    assert whole.dtype == torch.uint8


def test_cutmix_is_a_rectangle_of_another_image() -> None:
    batch = torch.arange(2000).view(-1, 1, 1, 1).expand(-1, 3, 9, 7).contiguous()
    out = Augment(mix="cutmix")(batch, generator())
    order = torch.randperm(2000, generator=generator())
    own, other = out == batch, out == order.view(-1, 1, 1, 1)
    assert bool((own | other).all()) and bool((out == out[:, :1]).all())
    foreign = ~own[:, 0]  # [N, H, W]
    box = foreign.any(2, keepdim=True) & foreign.any(1, keepdim=True)
    assert torch.equal(box, foreign)
    assert 0.2 < float(foreign.float().mean()) < 0.5  # half of the area, less what hangs over the edges


def test_an_unknown_mix_is_refused() -> None:
    with pytest.raises(DataError, match="mixup, cutmix"):
        Augment(mix="cut")
