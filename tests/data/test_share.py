"""The parts of a batch that several processes take are the batch, augmented as it would have been whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from pyrobnn.data import Augment, Split, load_data, memory
from pyrobnn.data.arrays import same_in_all
from pyrobnn.data.memory import room_for_images
from pyrobnn.data.stream import default_workers
from pyrobnn.errors import DataError
from pyrobnn.io.processes import current, part_of, together


def split(count: int, augment: Augment | None) -> Split:
    images = torch.randint(0, 256, (count, 1, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Split(images, torch.arange(count) % 3, (0.5,), (0.25,), augment)


AUGMENTS = [None, Augment(shift=2, flip=True, cutout=3), Augment(crop=0.5, flip=True, colour=0.3)]


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("size", [2, 3])
def test_parts_are_the_whole(augment: Augment | None, size: int) -> None:
    part = split(23, augment)  # batches of 8, 8 and 7
    sides = torch.arange(23) % 2 == 0
    sources = [torch.Generator().manual_seed(5) for _ in range(size + 1)]
    whole = list(part.examples(8, generator=sources[0], augment=True, mirrored=sides))
    shares = [
        list(part.examples(8, generator=sources[1 + rank], augment=True, mirrored=sides, share=(rank, size)))
        for rank in range(size)
    ]
    for number, batch in enumerate(whole):
        mine = [share[number] for share in shares]
        assert {found.total for found in mine} == {len(batch.y)} == {batch.total}
        for field in ("x", "y", "view"):
            assert torch.equal(torch.cat([getattr(found, field) for found in mine]), getattr(batch, field))
    # The generators have moved alike, so that a pass can go on in another number of processes.
    assert len({int(torch.randint(2**40, (), generator=source)) for source in sources}) == 1


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_moves_the_generator_alike(mix: str) -> None:
    part = split(10, Augment(mix=mix))
    ends = set()
    for share in ((0, 1), (0, 2), (1, 2)):
        source = torch.Generator().manual_seed(3)
        batches = list(part.examples(5, generator=source, augment=True, share=share))
        assert all(torch.isfinite(batch.x).all() for batch in batches)
        ends.add(int(torch.randint(2**40, (), generator=source)))
    assert len(ends) == 1


def test_a_batch_too_small_is_taken_by_all() -> None:
    assert [part_of(5, rank, 3) for rank in range(3)] == [(0, 5)] * 3
    assert [part_of(6, rank, 3) for rank in range(3)] == [(0, 2), (2, 4), (4, 6)]
    batches = list(split(11, None).examples(8, share=(1, 2)))
    assert [len(batch.y) for batch in batches] == [4, 3] and [batch.total for batch in batches] == [8, 3]


def test_turns_are_every_so_many_th_batch() -> None:
    part = split(23, None)
    whole = [x for x, _ in part.batches(4)]
    for rank in range(3):
        mine = [x for x, _ in part.batches(4, turns=(rank, 3))]
        assert len(mine) == 2 and all(torch.equal(x, whole[rank + 3 * k]) for k, x in enumerate(mine))


def test_a_loader_is_shared_batch_by_batch() -> None:
    images, labels = torch.rand(20, 1, 6, 6), torch.arange(20) % 4
    data = load_data((DataLoader(TensorDataset(images, labels), batch_size=8), TensorDataset(images, labels)))
    whole = list(data.train.examples(8, generator=torch.Generator().manual_seed(0)))
    parts = [
        list(data.train.examples(8, generator=torch.Generator().manual_seed(0), share=(rank, 2))) for rank in (0, 1)
    ]
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[number].x for part in parts]), batch.x)


def test_a_sampler_that_shares_already_is_refused() -> None:
    images, labels = torch.rand(20, 1, 6, 6), torch.arange(20) % 4
    dataset = TensorDataset(images, labels)
    loader = DataLoader(dataset, batch_size=8, sampler=DistributedSampler(dataset, num_replicas=2, rank=0))
    for stream in (False, True):
        with pytest.raises(DataError, match="leave the sampler out"):
            load_data((loader, loader, loader) if stream else (loader, dataset), stream=stream)


def test_processes_of_a_machine_share_its_memory_and_processors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pyrobnn.data.memory.free_memory", lambda: 1 << 30)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    alone = room_for_images(), default_workers()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (room_for_images(), default_workers()) == (alone[0] // 4, 3)


def loaded_with_room(images: list[int]) -> tuple[str, str]:
    """Each process has room for so many images of its own: what compress makes of that, and what fit does."""
    memory.free_memory = lambda: round(images[current().rank] * 36 / memory.MEMORY_SHARE)  # type: ignore[assignment]
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    source = TensorDataset(torch.rand(30, 1, 6, 6), torch.arange(30) % 3)
    with together() as processes:
        with memory.room_of_all():
            data = processes.first_leads(lambda: load_data(source))
        kinds = processes.each(type(data.train.images).__name__)
        same_in_all(data)
        own = load_data(source)
        try:
            same_in_all(own)
        except DataError as error:
            return str(kinds), str(error)
    return str(kinds), "the same"


def test_all_processes_stream_or_none(in_processes: Callable[..., list[Any]]) -> None:
    for rooms, kind in (([1000, 1000], "Tensor"), ([1000, 10], "StreamedImages"), ([10, 1000], "StreamedImages")):
        for kinds, said in in_processes(2, loaded_with_room, rooms):
            assert kinds == str([kind] * 2)
            assert ("with stream=True or stream=False" in said) == (rooms[0] != rooms[1])
