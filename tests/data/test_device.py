"""Sets that live on a device, and copies that run ahead; with the meta device, which has no numbers, in place of a GPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn.data import device as where
from pyrobnn.data.augment import Augment
from pyrobnn.data.device import ahead, resident, rows_of
from pyrobnn.data.loader import read_loader
from pyrobnn.data.split import Split

META = torch.device("meta")


@pytest.fixture(autouse=True)
def room(monkeypatch: Any) -> None:
    """A device with a kilobyte for data."""
    monkeypatch.setattr(where, "free_on", lambda device: 4096)


@pytest.fixture
def copied(monkeypatch: Any) -> list[int]:
    """Bytes of every copy that goes to the device."""
    found: list[int] = []
    plain = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and args[0] == META and self.device != META:
            found.append(self.numel() * self.element_size())
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    return found


def split(side: int, count: int = 10, augment: Augment | None = None) -> Split:
    images = torch.arange(count * side * side, dtype=torch.int64).remainder(256).to(torch.uint8)
    return Split(images.view(count, 1, side, side), torch.arange(count) % 3, (0.5,), (0.25,), augment)


def test_a_set_that_fits_is_copied_once_and_goes_with_the_original(copied: list[int]) -> None:
    small, large = torch.zeros(1024, dtype=torch.uint8), torch.zeros(1025, dtype=torch.uint8)
    assert resident(large, META) is None and not copied
    first = resident(small, META)
    assert first is not None and first.is_meta and resident(small, META) is first and copied == [1024]
    assert resident(small, torch.device("cpu")) is small  # where it is already, whatever its size
    assert resident(large, torch.device("cpu")) is large
    before = len(where._resident)
    del small
    gc.collect()
    assert len(where._resident) == before - 1


def test_rows_are_picked_where_the_set_lives(copied: list[int]) -> None:
    table, rows = torch.zeros(100, 8, dtype=torch.uint8), torch.tensor([3, 1, 7])
    assert rows_of(table, rows, META).shape == (3, 8) and copied == [800, 24]  # all of it, and the rows' numbers
    rows_of(table, rows, META)
    assert copied == [800, 24, 24]
    wide = torch.zeros(100, 80, dtype=torch.uint8)
    assert rows_of(wide, rows, META).shape == (3, 80) and copied[-1] == 240
    assert torch.equal(rows_of(wide + 1, rows, torch.device("cpu")), torch.ones(3, 80, dtype=torch.uint8))


@pytest.mark.parametrize("side", [8, 16])
def test_passes_over_a_split(side: int, copied: list[int]) -> None:
    """8 x 8 pixels fit (640 bytes), 16 x 16 do not: pixels are copied once, or in every pass."""
    data = split(side, augment=Augment(flip=True, shift=1))
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        batches = list(data.examples(4, generator=generator, augment=True, device=META, channels_last=True))
        assert [tuple(b.x.shape) for b in batches] == [(4, 1, side, side), (4, 1, side, side), (2, 1, side, side)]
        assert all(b.x.is_meta and b.y.is_meta and b.x.dtype == torch.float32 for b in batches)
    pixels = [size for size in copied if size in (640, 4 * side * side, 2 * side * side)]
    assert pixels == ([640] if side == 8 else [1024, 1024, 512] * 2)


@pytest.mark.parametrize("depth", [0, 1, 3, 99])
def test_copies_run_ahead_and_keep_the_order(depth: int) -> None:
    read: list[int] = []

    def source() -> Iterator[tuple[torch.Tensor, ...]]:
        for number in range(5):
            read.append(number)
            yield torch.full((2,), number), torch.tensor(number)

    got = []
    for images, number in ahead(source(), torch.device("cpu"), depth):
        got.append(int(number))
        assert torch.equal(images, torch.full((2,), got[-1]))
        assert len(read) == min(5, got[-1] + 1 + depth)
    assert got == list(range(5)) and list(ahead([], torch.device("cpu"), depth)) == []


def test_without_a_device_nothing_is_read_that_is_not_asked_for() -> None:
    read: list[int] = []
    source = ((torch.tensor(read.append(k) or k),) for k in range(9))
    (first,) = next(ahead(source, torch.device("cpu")))
    assert int(first) == 0 and read == [0]


@pytest.mark.parametrize("in_order", [True, False])
def test_what_a_cpu_gets_does_not_depend_on_the_road(in_order: bool, monkeypatch: Any) -> None:
    """Whole sets in place and copies ahead give the same images and targets, bit for bit."""
    data = split(8, augment=Augment(flip=True, shift=1))

    def passes() -> list[Any]:
        generator = None if in_order else torch.Generator().manual_seed(3)
        return list(data.examples(4, generator=generator, augment=not in_order))

    resident_ = passes()
    for name in ("pyrobnn.data.split.resident", "pyrobnn.data.device.resident"):
        monkeypatch.setattr(name, lambda tensor, device: None)
    for one, other in zip(resident_, passes(), strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y) and torch.equal(one.view, other.view)


def test_a_loader_goes_the_same_way() -> None:
    images, targets = torch.rand(7, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    source, labels, _ = read_loader(DataLoader(TensorDataset(images, targets), batch_size=3), "train", None)
    train = Split(source, labels, (0.0,), (1.0,))
    got = list(train.examples(3))
    assert [b.total for b in got] == [3, 3, 1]
    assert torch.allclose(torch.cat([b.x for b in got]), images) and torch.equal(torch.cat([b.y for b in got]), targets)
    assert [tuple(b.x.shape) for b in train.examples(3, device=META)] == [(3, 1, 4, 4), (3, 1, 4, 4), (1, 1, 4, 4)]
