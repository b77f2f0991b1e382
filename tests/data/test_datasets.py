"""Data sets and loaders of torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from pyrobnn.data import load_data
from pyrobnn.errors import DataError


class Pictures(Dataset[Any]):
    """Gives whatever `kind` says, the way transforms of users do."""

    def __init__(self, kind: str, count: int = 20) -> None:
        self.kind, self.count = kind, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        array = np.full((4, 5, 3), index * 10 % 256, dtype=np.uint8)
        image: Any = {
            "pil": lambda: Image.fromarray(array),
            "grey": lambda: Image.fromarray(array[:, :, 0]),
            "numpy": lambda: array,
            "tensor": lambda: torch.from_numpy(array).permute(2, 0, 1) / 255,
            "sizes": lambda: array[: 1 + index % 2],
            "nan": lambda: torch.full((1, 2, 2), float("nan")),
            "vector": lambda: torch.zeros(3),
        }[self.kind]()
        return image, torch.tensor(index % 2)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (Pictures("tensor")[index] for index in range(20))


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        ("pil", (3, 4, 5), torch.uint8),
        ("grey", (1, 4, 5), torch.uint8),
        ("numpy", (3, 4, 5), torch.uint8),
        ("tensor", (3, 4, 5), torch.float32),
    ],
)
def test_datasets(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    data = load_data((Pictures(kind), Pictures(kind, count=4)))
    assert data.image_shape == shape and data.train.images.dtype == dtype
    assert (len(data.train), len(data.valid), len(data.test)) == (18, 2, 4)
    x = torch.cat([x for x, _ in data.train.batches(5)])
    assert abs(float(x.mean())) < 1e-5  # standardised, whatever the pixels were
    single = load_data(Pictures(kind))
    assert (len(single.train), len(single.valid), len(single.test)) == (14, 2, 4)
    assert single.name == "Pictures"


def test_loaders_streams_and_arrays() -> None:
    reference = load_data(Pictures("tensor"))
    assert load_data(DataLoader(Pictures("tensor"), batch_size=7)).fingerprint == reference.fingerprint
    assert load_data(Stream()).fingerprint == reference.fingerprint
    images = torch.stack([Pictures("tensor")[index][0] for index in range(20)])
    labels = torch.arange(20) % 2
    assert load_data(TensorDataset(images, labels)).fingerprint == reference.fingerprint
    tensors = load_data(((images, labels), (images[:4], labels[:4])))
    assert torch.equal(tensors.test.images, images[:4])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Pictures("sizes"), r"images of one size .*number 1; resize"),
        (Pictures("nan"), "finite pixels"),
        (Pictures("vector"), r"images \[C, H, W\], got shape \(3,\)"),
        (Pictures("pil", count=0), "empty data set"),
        (TensorDataset(torch.zeros(4, 1, 2, 2)), r"expected \(image, label\)"),
        (TensorDataset(torch.zeros(4, 1, 2, 2), torch.zeros(4, 3)), "could be one-hot classes or several labels"),
        (TensorDataset(torch.zeros(4, 1, 2, 2), torch.full((4,), 2.0)), r"expected integer labels.*task='regression'"),
        (TensorDataset(torch.zeros(4, 1, 2, 2, dtype=torch.int32), torch.arange(4)), "uint8 or float images"),
        (3, "got int"),
        ((1, 2), "train: expected a Dataset, a DataLoader"),
    ],
)
def test_bad_datasets(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(source)


def test_image_size() -> None:
    assert load_data(Pictures("numpy"), image_size=3).image_shape == (3, 3, 3)


def test_samplers_of_loaders_count() -> None:
    dataset = Pictures("tensor")
    with pytest.warns(UserWarning, match="10 images that the sampler .* leaves out"):
        data = load_data(DataLoader(dataset, sampler=SubsetRandomSampler(range(10))))
    assert len(data.train) + len(data.valid) + len(data.test) == 10
    with pytest.warns(UserWarning, match="a sampler that repeats images is not used"):
        load_data(DataLoader(dataset, sampler=[*range(20), 3]))
    with pytest.warns(UserWarning, match="collate_fn of a DataLoader is not used"):
        load_data(DataLoader(dataset, collate_fn=lambda items: items))


class Numbered(Dataset[Any]):
    """Images that say which one they are; `names` are the classes."""

    def __init__(self, count: int = 40, names: tuple[str, ...] = ("a", "b"), kind: torch.dtype = torch.uint8) -> None:
        self.count, self.classes, self.kind = count, list(names), kind

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 4, 4), index).to(self.kind), index % len(self.classes)


def seen(data: Any, part: str) -> set[int]:
    images = getattr(data, part).images[: len(getattr(data, part))]
    return {int(value) for value in images.flatten(1)[:, 0]}


@pytest.mark.parametrize("stream", [None, True])
def test_batch_samplers_of_loaders_count(stream: bool | None) -> None:
    """Torch gives such a loader a sampler of all images as well."""
    dataset = Numbered()
    train, test = (
        DataLoader(dataset, batch_sampler=BatchSampler(SubsetRandomSampler(rows), 5, False))
        for rows in (range(30), range(30, 40))
    )
    if stream:
        data = load_data((train, test, test), stream=True)
        assert (len(data.train), len(data.valid), len(data.test)) == (30, 10, 10)
        return
    with pytest.warns(UserWarning, match="that the sampler of the DataLoader leaves out"):
        data = load_data((train, test), valid_fraction=0.0)
    assert seen(data, "train") == set(range(30)) and seen(data, "test") == set(range(30, 40))


@pytest.mark.parametrize("stream", [False, True])
def test_parts_have_the_same_classes(stream: bool) -> None:
    """A folder of test images that lacks a class has other numbers for those after it."""
    train = Numbered(names=("a", "b", "c"))
    for names, message in ((("a", "c"), "'b' in one only"), (("c", "b", "a"), "the same order")):
        with pytest.raises(DataError, match=message):
            load_data((train, Numbered(names=names)), stream=stream)
    assert load_data((train, Numbered(names=("a", "b", "c"))), stream=stream).classes == ("a", "b", "c")


class OneFloat(Numbered):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return (image.float() / 255 if index == 1 else image), label


@pytest.mark.parametrize("kinds", [(torch.uint8, torch.float32), (torch.float32, torch.uint8)])
def test_streamed_images_have_one_type(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    for stream in (False, True):
        with pytest.raises(DataError, match="type"):
            load_data((Numbered(kind=kinds[0]), Numbered(kind=kinds[1])), stream=stream)
    with pytest.raises(DataError, match=r"got torch.float32 at number 1"):  # not among those that are looked at
        list(load_data((Numbered(), OneFloat(200)), stream=True, workers=0).test.batches(32))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_with_a_generator_of_its_own_has_one_order_for_a_seed(workers: int) -> None:
    loaders = [
        DataLoader(
            Numbered(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3), num_workers=workers
        )
        for _ in range(3)
    ]
    data = load_data(tuple(loaders), stream=True)
    for _ in range(2):
        assert torch.equal(torch.cat([y for _, y in data.test.batches(8)]), data.test.labels)
    assert len(set(data.test.labels[:20].tolist())) == 2 and data.test.labels.tolist() != [0, 1] * 20
