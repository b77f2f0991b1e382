"""Splits, batches, normalisation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyrobnn.data import Augment, Data, Split, load_data
from pyrobnn.data.statistics import channel_statistics, fingerprint, stratified_split
from pyrobnn.errors import DataError


def make_split(count: int = 10, augment: Augment | None = None) -> Split:
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8)
    return Split(images, torch.arange(count) % 3, (0.5, 0.25, 0.1), (0.5, 2.0, 1.0), augment)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_batches_in_order_cover_everything_once() -> None:
    split = make_split(10)
    sizes, labels, images = [], [], []
    for x, y in split.batches(4):
        assert x.dtype == torch.float32 and y.dtype == torch.int64
        sizes.append(len(x))
        labels.append(y)
        images.append(x)
    assert sizes == [4, 4, 2]
    assert torch.equal(torch.cat(labels), split.labels)
    mean = torch.tensor(split.mean).view(1, 3, 1, 1)
    std = torch.tensor(split.std).view(1, 3, 1, 1)
    torch.testing.assert_close(torch.cat(images), (split.images / 255 - mean) / std)
    assert [len(x) for x, _ in split.batches(4, drop_last=True)] == [4, 4]


def test_shuffling_keeps_images_with_their_labels_and_repeats_with_its_generator() -> None:
    split = make_split(50)
    split = replace(split, images=split.labels.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 4, 4))
    own = generator(3)
    state = own.get_state()
    first = list(split.batches(8, generator=own))
    for x, y in first:
        pixel = ((x[:, 0, 0, 0] * split.std[0] + split.mean[0]) * 255).round().long()
        assert torch.equal(pixel, y)
    order = torch.cat([y for _, y in first])
    assert not torch.equal(order, split.labels)
    assert torch.equal(order.sort().values, split.labels.sort().values)
    second = torch.cat([y for _, y in split.batches(8, generator=own)])
    assert not torch.equal(order, second)  # the next epoch has another order
    own.set_state(state)
    assert torch.equal(order, torch.cat([y for _, y in split.batches(8, generator=own)]))


def test_batches_leave_the_global_random_state_alone() -> None:
    split = make_split(augment=Augment(shift=1, flip=True))
    state = torch.get_rng_state()
    list(split.batches(4, generator=generator(), augment=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_happens_on_raw_pixels() -> None:
    split = replace(make_split(64, Augment(shift=3)), images=torch.full((64, 3, 4, 4), 255, dtype=torch.uint8))
    black = -torch.tensor(split.mean) / torch.tensor(split.std)
    x = torch.cat([x for x, _ in split.batches(16, generator=generator(), augment=True)])
    plain = torch.cat([x for x, _ in split.batches(16, generator=generator())])
    changed = x != plain
    assert changed.any()
    torch.testing.assert_close(x[changed], black.view(1, 3, 1, 1).expand_as(x)[changed])


@pytest.mark.parametrize("augment", [False, True])
def test_memory_layout(augment: bool) -> None:
    split = make_split(augment=Augment(shift=1, flip=True))
    for channels_last in (False, True):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        batches = split.batches(4, generator=generator(), augment=augment, channels_last=channels_last)
        assert all(x.is_contiguous(memory_format=layout) for x, _ in batches)


def test_float_images_are_normalised_as_they_are() -> None:
    split = Split(torch.full((2, 1, 2, 2), 3.0), torch.tensor([0, 1]), (1.0,), (4.0,))
    assert next(split.batches(2))[0].unique().tolist() == [0.5]


def test_wrong_use_is_told_before_the_first_batch() -> None:
    with pytest.raises(DataError, match="batch size of at least 1, got 0"):
        make_split().batches(0)
    with pytest.raises(DataError, match=r"torch\.Generator"):
        make_split().batches(2, augment=True)
    with pytest.raises(DataError, match="at least 1 image"):
        make_split().take(0)


def test_take_is_spread_over_the_set() -> None:
    split = replace(make_split(90), labels=torch.arange(90) // 30)
    assert split.take(9).labels.bincount().tolist() == [3, 3, 3]
    assert len(split.take(1000)) == 90


def test_channel_statistics_against_plain_torch() -> None:
    images = torch.randint(0, 200, (20, 3, 7, 5), dtype=torch.uint8)
    images[:, 2] = 9
    for given, pixels in ((images, images.double() / 255), (images.float() - 50, images.double() - 50)):
        mean, std = channel_statistics(given)
        torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
        expected = pixels.std((0, 2, 3), unbiased=False)
        expected[2] = 1  # a constant channel
        torch.testing.assert_close(torch.tensor(std).double(), expected, rtol=1e-6, atol=1e-7)


def test_stratified_split_takes_the_same_share_of_each_class() -> None:
    labels = torch.cat([torch.zeros(100), torch.ones(40), torch.full((3,), 2)]).long()
    labels = labels[torch.randperm(len(labels))]
    state = torch.get_rng_state()
    kept, aside = stratified_split(labels, 0.2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    thirds = stratified_split(torch.arange(40) % 4, 1 / 3, seed=0)[1]
    assert len(thirds) == 13  # not 4 times 3
    assert labels[aside].bincount().tolist() == [20, 8, 1]
    assert torch.equal(torch.cat([kept, aside]).sort().values, torch.arange(143))
    assert torch.equal(aside, stratified_split(labels, 0.2, seed=0)[1])
    assert not torch.equal(aside, stratified_split(labels, 0.2, seed=1)[1])
    assert len(stratified_split(labels, 0.0, seed=0)[1]) == 0


def test_fingerprint_sees_images_labels_and_shape() -> None:
    split = make_split()
    seen = {
        fingerprint(split),
        fingerprint(replace(split, images=split.images + 1)),
        fingerprint(replace(split, labels=split.labels.flip(0))),
        fingerprint(replace(split, images=split.images.view(10, 3, 2, 8))),
    }
    assert len(seen) == 4
    assert fingerprint(split) == fingerprint(replace(split, mean=(0.0, 0.0, 0.0)))


def test_with_normalisation_reaches_all_parts() -> None:
    data = load_data("digits")
    other = data.with_normalisation([0.0], [2.0])
    for split in (other.train, other.valid, other.test):
        assert split.mean == (0.0,) and split.std == (2.0,)
    assert other.mean == (0.0,) and other.fingerprint == data.fingerprint
    torch.testing.assert_close(other.example, other.train.images[:2] / 255 / 2)
    for mean, std in (([0.0, 0.0], [1.0]), ([0.0], [0.0])):
        with pytest.raises(DataError, match="1 positive stds"):
            data.with_normalisation(mean, std)


def test_training_images_are_standardised() -> None:
    data: Data = load_data("digits")
    x = torch.cat([x for x, _ in data.train.batches(100)])
    assert abs(float(x.mean())) < 1e-4 and abs(float(x.std()) - 1) < 1e-3


@pytest.mark.parametrize("augment", [None, Augment(flip=True), Augment(shift=2)])
def test_examples_say_which_view_they_are(augment: Augment | None) -> None:
    split = make_split(11, augment)
    views = torch.cat(list(split.views(4)))
    assert len(views) == 11 * split.num_views and split.num_views == (2 if augment and augment.flip else 1)
    seen = []
    for x, y, view, _ in split.examples(4, generator=generator(), augment=True):
        assert torch.equal(y, split.labels[view // split.num_views])
        if augment is None or not augment.shift:
            assert torch.equal(x, views[view])
        seen += view.tolist()
    assert sorted(v // split.num_views for v in seen) == list(range(11))
    if split.num_views == 2:
        assert {v % 2 for v in seen} == {0, 1}
    pairs = zip(
        split.batches(4, generator=generator(), augment=True),
        split.examples(4, generator=generator(), augment=True),
        strict=True,
    )
    assert all(torch.equal(a[0], b.x) and torch.equal(a[1], b.y) for a, b in pairs)


def test_mirrored_images_can_be_chosen_by_row() -> None:
    split = make_split(11, Augment(flip=True))
    sides = torch.arange(11) % 3 == 0
    views = torch.cat(list(split.views(4)))
    for x, _, view, _ in split.examples(4, generator=generator(), augment=True, mirrored=sides):
        assert torch.equal((view % 2).bool(), sides[view // 2])
        assert torch.equal(x, views[view])
    with pytest.raises(DataError, match="one mirror flag for each of 11"):
        split.examples(4, generator=generator(), augment=True, mirrored=sides[:4])
