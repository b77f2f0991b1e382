"""Images read when they are needed: the same ones, in the same order, whatever reads them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyrobnn.data import Augment, Data, Split, load_data, memory
from pyrobnn.data.split import Batch
from pyrobnn.data.stream import StreamedImages
from pyrobnn.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures of two classes and several sizes."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(60):
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        array = rng.integers(0, 256, (12 + number % 3, 10 + number % 4, 3), dtype=np.uint8)
        Image.fromarray(array).save(root / "ab"[number % 2] / f"{number:02d}.png")
    return root


def load(folder: Path, stream: bool, workers: int = 0, **settings: Any) -> Data:
    return load_data(folder, image_size=8, stream=stream, workers=workers, **settings)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(one: list[Batch], other: list[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and (a.view is None or torch.equal(a.view, b.view))
        for a, b in pairs
    )


def test_a_streamed_folder_is_the_folder(folder: Path) -> None:
    memory, stream = load(folder, False), load(folder, True)
    assert isinstance(stream.train.images, StreamedImages) and "read when needed" in stream.describe()
    assert memory.image_shape == stream.image_shape == (3, 8, 8) and memory.classes == stream.classes
    stream = stream.with_normalisation(memory.mean, memory.std)
    assert torch.equal(memory.example, stream.example)
    for part in ("train", "valid", "test"):
        one, other = getattr(memory, part), getattr(stream, part)
        assert equal(list(one.examples(7)), list(other.examples(7)))
        assert equal(list(one.examples(7, generator=generator())), list(other.examples(7, generator=generator())))
    assert stream.mean == pytest.approx(memory.mean) and stream.std == pytest.approx(memory.std)


def test_rows_can_be_taken_and_put_together(folder: Path) -> None:
    memory, stream = load(folder, False), load(folder, True)
    for one, other in (
        (memory.train.take(5), stream.train.take(5)),
        (memory.without_validation().train, stream.without_validation().train),
    ):
        assert len(one) == len(other) and torch.equal(one.labels, other.labels)
        assert torch.equal(one.images[: len(one)], other.images[: len(other)])  # type: ignore[index]
    assert len(stream.without_validation().valid) == 0
    rows = torch.tensor([3, 1])
    assert torch.equal(stream.train.select(rows).take(2).images[:2], memory.train.images[rows])  # type: ignore[index]


AUGMENTS = [None, Augment(shift=1, flip=True), Augment(crop=0.3, flip=True, colour=0.4)]


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder: Path, augment: Augment | None, workers: int) -> None:
    alone, many = load(folder, True, 0, augment=augment).train, load(folder, True, workers, augment=augment).train
    first, second = generator(3), generator(3)
    state = torch.get_rng_state()
    for _ in range(2):
        one = list(alone.examples(7, generator=first, augment=True))
        assert equal(one, list(many.examples(7, generator=second, augment=True)))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(first.get_state(), second.get_state())
    again = list(alone.examples(7, generator=first, augment=True))
    assert not equal(one, again)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_pass_goes_on_in_its_middle(folder: Path, stream: bool, augment: Augment | None) -> None:
    train = load(folder, stream, augment=augment).train
    whole, source = [], generator(5)
    begun, kept = source.get_state(), None
    for number, batch in enumerate(train.examples(7, generator=source, augment=True)):
        whole.append(batch)
        if number == 2:
            kept = source.get_state()
    assert kept is not None
    other = generator(99)
    other.set_state(kept)
    rest = list(train.examples(7, generator=other, augment=True, resume=(begun, 3)))
    assert equal(whole[3:], rest) and torch.equal(other.get_state(), source.get_state())


def test_crops_are_of_the_whole_picture(tmp_path: Path) -> None:
    """A random resized crop of a large picture keeps detail that the resized one has lost."""
    for number in range(8):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        board = ((np.indices((64, 64)) // 2).sum(0) % 2 * 255).astype(np.uint8)
        Image.fromarray(board).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    data = load_data(tmp_path, image_size=16, stream=True, workers=0, augment=Augment(crop=0.05), mean=[0.0], std=[1.0])
    plain = torch.cat([x for x, _ in data.train.batches(4)])
    cropped = torch.cat([x for x, _ in data.train.batches(4, generator=generator(), augment=True)])
    assert float(cropped.std()) > 4 * float(plain.std())
    assert cropped.shape == plain.shape


def test_crop_and_colour_of_images_in_memory() -> None:
    images = torch.randint(0, 256, (12, 3, 9, 7), dtype=torch.uint8)
    split = Split(images, torch.arange(12) % 2, (0.0,) * 3, (1.0,) * 3, Augment(crop=1.0, colour=0.0))
    colour = Split(images, split.labels, split.mean, split.std, Augment(colour=0.5))
    for one in (split, colour):
        x = [x for x, _ in one.batches(5, generator=generator(), augment=True)]
        assert torch.cat(x).shape == (12, 3, 9, 7)
    view = [b.view for b in colour.examples(5, generator=generator(), augment=True)]
    gone = (
        torch.cat([x for x, _ in colour.batches(5, generator=generator(), augment=True)])
        - images[torch.cat(view)] / 255
    )  # type: ignore[arg-type]
    assert (gone.abs().amax((1, 2, 3)) > 0).all()


class Noisy(Dataset[Any]):
    """Items with transforms that draw from every global random state."""

    def __init__(self) -> None:
        self.targets = [k % 3 for k in range(30)]

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002
        return torch.full((1, 4, 4), float(index)) + 0.1 * noise, index % 3


def test_transforms_of_a_data_set_draw_by_image() -> None:
    splits = [load_data(Noisy(), stream=True, workers=workers).train for workers in (0, 2)]
    kept = random.getstate()
    one, other = (list(split.examples(4, generator=generator(), augment=True)) for split in splits)
    assert equal(one, other) and random.getstate() == kept
    again = list(splits[0].examples(4, generator=generator(1), augment=True))
    assert not equal(one, again)
    still = [list(splits[0].examples(4)) for _ in range(2)]
    assert equal(*still)


def test_targets_are_read_where_the_data_set_lists_others() -> None:
    class Shifted(Noisy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return super().__getitem__(index)[0], (index + 1) % 3

    for dataset, first in ((Noisy(), 0), (Shifted(), 1)):
        data = load_data(dataset, stream=True, valid_fraction=0)
        assert torch.equal(data.train.labels, load_data(dataset, stream=False, valid_fraction=0).train.labels)
        assert first in data.train.labels


def test_what_does_not_fit_is_streamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 4 * 1000)
    for source, size in ((folder, 8), (Noisy(), None)):
        assert isinstance(load_data(source, image_size=size, workers=0).train.images, StreamedImages)
        assert isinstance(load_data(source, image_size=size, stream=False).train.images, Tensor)

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return (Noisy()[k % 30] for k in range(10**9))

    with pytest.raises(DataError, match="fill the memory set aside"):
        load_data(Endless())
    assert 0 < memory.room_for_images() == 1000
    monkeypatch.undo()
    assert memory.room_for_images() > 1 << 20


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_are_one_line(folder: Path, tmp_path: Path, workers: int) -> None:
    data = load(folder, True, workers)
    reader = data.train.images.reader  # type: ignore[union-attr]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    object.__setattr__(reader, "paths", (str(broken), *reader.paths[1:]))
    with pytest.raises(DataError, match=r"broken\.png is not a readable image") as caught:
        for split in (data.train, data.valid, data.test):
            list(split.batches(4))
    assert "\n" not in str(caught.value)


def test_a_loader_is_used_as_it_is() -> None:
    images, labels = torch.randn(24, 2, 5, 4), torch.arange(24) % 3
    dataset = TensorDataset(images, labels)
    train = DataLoader(dataset, batch_size=5, shuffle=True)
    data = load_data((train, DataLoader(dataset, batch_size=6), DataLoader(dataset, batch_size=8)), stream=True)
    assert data.image_shape == (2, 5, 4) and data.num_classes == 3 and data.mean == (0.0, 0.0)
    assert not data.train.indexed and data.train.steps(100) == 5 and data.train.augment is None
    one, other = (list(data.train.examples(100, generator=generator(seed))) for seed in (0, 1))
    assert [len(batch.y) for batch in one] == [5, 5, 5, 5, 4] and one[0].view is None
    assert not torch.equal(one[0].x, other[0].x)
    assert equal(one, list(data.train.examples(100, generator=generator())))
    assert torch.equal(torch.cat([b.x for b in data.test.examples(100)]), images)
    source = generator(2)
    begun = source.get_state()
    whole = list(data.train.examples(1, generator=source))
    assert equal(whole[2:], list(data.train.examples(1, generator=source, resume=(begun, 2))))
    labels_of_a_pass = torch.cat([b.y for b in data.train.examples(1)])
    assert torch.equal(labels_of_a_pass, data.train.labels)
    assert len(data.train.take(7)) == 7


def test_loaders_that_cannot_be_used_as_they_are() -> None:
    dataset = TensorDataset(torch.randn(24, 2, 5, 4), torch.arange(24) % 3)
    loader = DataLoader(dataset, batch_size=5)
    with pytest.warns(UserWarning, match="no validation part"):
        assert len(load_data((loader, loader), stream=True).valid) == 0
    for source, settings, message in (
        (loader, {}, "cannot be split"),
        ((loader, dataset), {}, "cannot be split"),
        ((loader, loader, loader), {"image_size": 4}, "resizes images itself"),
        ((loader, DataLoader(dataset, collate_fn=lambda items: items), loader), {}, r"expected \(images, targets\)"),
        ((dataset[:4], dataset[:4]), {}, "arrays are in memory already"),
        ("digits", {}, "read whole"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(source, stream=True, **settings)
    data = load_data((loader, loader, loader), stream=True, augment=Augment(colour=0.5))
    with pytest.raises(DataError, match="belong into the DataLoader"):
        data.train.examples(4, generator=generator(), augment=True)
    with pytest.raises(DataError, match="cannot be chosen"):
        data.train.select(torch.arange(2))


def test_masks_are_mirrored_with_their_images() -> None:
    masks = torch.randint(0, 3, (20, 6, 5))
    data = load_data(((masks * 80).to(torch.uint8), masks), augment=Augment(flip=True), mean=[0.0], std=[1.0])
    seen = 0
    for batch in data.train.examples(4, generator=generator(), augment=True):
        assert torch.equal((batch.x[:, 0] * 255 / 80).round().long(), batch.y)
        seen += int((batch.view % 2).sum())  # type: ignore[operator]
    assert seen > 0
    for augment in (Augment(shift=1), Augment(crop=0.5)):
        with pytest.raises(DataError, match="mirror only"):
            load_data(((masks * 80).to(torch.uint8), masks), augment=augment).train.batches(
                4, generator=generator(), augment=True
            )


@pytest.mark.slow
def test_memory_stays_flat_over_20_000_pictures(tmp_path: Path) -> None:
    """The pixels would take 20,000 x 3 x 64 x 64 = 246 MB; two passes may add 60 MB to what 200 pictures take."""
    rng = np.random.default_rng(0)
    kinds = [Image.fromarray(rng.integers(0, 256, (70, 64 + k, 3), dtype=np.uint8)) for k in range(10)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for number in range(20_000):
        kinds[number % 10].save(tmp_path / "ab"[number % 2] / f"{number:05d}.jpg", quality=50)
    code = (
        "import resource, torch, pyrobnn as pb\n"
        f"data = pb.load_data({str(tmp_path)!r}, image_size=64, stream=True, workers=1)\n"
        "list(data.train.take(200).batches(50))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "g = torch.Generator().manual_seed(0)\n"
        "seen = sum(len(y) for _ in range(2) for _, y in data.train.batches(100, generator=g))\n"
        "workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, workers - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seen, more, worker = map(int, done.stdout.split())
    assert seen == 2 * 14_400
    assert more < 60 * 1024 and worker < 60 * 1024  # kB
