"""Image folders: parts, sizes and kinds of pictures, hidden names, links, files that are no pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyrobnn.data import Data, load_data
from pyrobnn.errors import DataError

RNG = np.random.default_rng(0)


def fill(root: Path, *classes: str, count: int = 10, grey: int | None = None) -> Path:
    for name in classes or ("cat", "dog"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            array = RNG.integers(0, 256, (8, 8), dtype=np.uint8) if grey is None else np.full((8, 8), grey, np.uint8)
            Image.fromarray(array).save(root / name / f"{number}.png")
    return root


def total(data: Data) -> int:
    return sum(len(part) for part in (data.train, data.valid, data.test))


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val"])
def test_a_validation_folder_validates(tmp_path: Path, name: str) -> None:
    for part, grey in (("train", 10), (name, 120), ("test", 240)):
        fill(tmp_path / part, grey=grey)
    data = load_data(tmp_path)
    for split, grey in ((data.train, 10), (data.valid, 120), (data.test, 240)):
        assert len(split) == 20 and split.images.unique().tolist() == [grey]  # type: ignore[union-attr]
    assert data.classes == ("cat", "dog")


def test_parts_by_other_names_and_in_any_case(tmp_path: Path) -> None:
    fill(tmp_path / "Training")
    fill(tmp_path / "Testing", count=3)
    data = load_data(tmp_path)
    assert len(data.test) == 6 and data.num_classes == 2


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    fill(tmp_path / "one" / "train")
    fill(tmp_path / "one" / "test")
    fill(tmp_path / "one" / "val")
    fill(tmp_path / "one" / "valid")
    with pytest.raises(DataError, match="val and valid, either of which could be the valid part"):
        load_data(tmp_path / "one")
    fill(tmp_path / "two" / "test")
    fill(tmp_path / "two" / "val")
    with pytest.raises(DataError, match="no train folder"):
        load_data(tmp_path / "two")
    fill(tmp_path / "three" / "train")
    fill(tmp_path / "three" / "test")
    fill(tmp_path / "three" / "unlabelled", "all")
    with pytest.warns(UserWarning, match=r"beside train and test are left out \(unlabelled\)"):
        load_data(tmp_path / "three")
    fill(tmp_path / "three" / "valid", "cat")
    with pytest.raises(DataError, match="'dog' in one only"):
        load_data(tmp_path / "three")


def test_a_folder_called_test_among_classes_is_a_class(tmp_path: Path) -> None:
    assert load_data(fill(tmp_path, "cat", "test")).classes == ("cat", "test")


def test_hidden_names_do_not_count(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    assert load_data(tmp_path).num_classes == 2  # without a word
    fill(tmp_path, ".ipynb_checkpoints", count=3)
    fill(tmp_path / "dog", ".cache", count=2)
    fill(tmp_path, "__MACOSX", count=1)
    (tmp_path / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07" + b"\0" * 60)
    with pytest.warns(UserWarning, match=r"hidden names are left out \(4, such as .ipynb_checkpoints\)"):
        data = load_data(tmp_path)
    assert data.num_classes == 2 and total(data) == 20


def test_what_is_no_picture_is_left_out_with_a_word(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "loose.png")
    with pytest.warns(UserWarning) as caught:
        data = load_data(tmp_path)
    words = [str(warning.message) for warning in caught]
    assert any("no pictures by their ending" in line and "notes.txt" in line for line in words)
    assert any("outside of the class folders" in line and "loose.png" in line for line in words)
    assert total(data) == 20


def test_folders_within_classes_are_read(tmp_path: Path) -> None:
    fill(tmp_path)
    fill(tmp_path / "cat", "old", "new", count=2)
    assert total(load_data(tmp_path)) == 24


def link(place: Path, target: Path) -> None:
    try:
        place.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("no links here")


@pytest.mark.parametrize("up", ["class", "root", "self", "sibling"])
def test_links_do_not_multiply_images(tmp_path: Path, up: str) -> None:
    fill(tmp_path)
    target = {
        "class": tmp_path / "cat",
        "root": tmp_path,
        "self": tmp_path / "cat" / "link",
        "sibling": tmp_path / "dog",
    }[up]
    link(tmp_path / "cat" / "link", target)
    with pytest.warns(UserWarning, match="broken links" if up == "self" else "left out"):
        data = load_data(tmp_path)
    assert total(data) == 20


def test_links_to_elsewhere_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    root = tmp_path / "set"
    root.mkdir()
    for name in ("cat", "dog"):
        link(root / name, tmp_path / "store" / name)
    assert total(load_data(root)) == 20
    link(root / "cat" / "again.png", root / "dog" / "0.png")
    with pytest.warns(UserWarning, match="found before under another name"):
        assert total(load_data(root)) == 20
    (root / "cat" / "again.png").unlink()
    link(root / "dog" / "nowhere.png", tmp_path / "missing.png")
    with pytest.warns(UserWarning, match="broken links are left out"):
        assert total(load_data(root)) == 20


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in 'empty'"):
        load_data(tmp_path)


def test_few_of_a_class_are_said_and_described(tmp_path: Path) -> None:
    fill(tmp_path, "cat", count=150)
    fill(tmp_path, "dog", count=12)
    with pytest.warns(UserWarning, match=r"class dog has \d+ training images and class cat \d+"):
        data = load_data(tmp_path, image_size=4)
    assert "2 classes" in data.describe() and "resized to 4x4" in data.describe()


def paint(root: Path, count: int = 6, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Two classes whose images are all dark or all bright."""
    for level, name in ((10, "dark"), (200, "bright")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = level if mode == "L" else (level, level + 1, level + 2)
            Image.new(mode, size, colour).save(root / name / f"{number}.png")
    return root


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    paint(tmp_path / "train", count=10)
    paint(tmp_path / "test", count=3)
    data = load_data(tmp_path)
    assert (len(data.train), len(data.valid), len(data.test)) == (18, 2, 6)
    assert data.image_shape == (3, 8, 8)
    # Classes are numbered in alphabetical order: bright is 0. Channels come in the order red, green, blue.
    assert torch.equal(data.test.images[:, 0, 0, 0], torch.where(data.test.labels == 0, 200, 10).to(torch.uint8))
    assert data.test.images[0, :, 0, 0].tolist() == [200, 201, 202]


def test_folder_of_classes_alone_is_split(tmp_path: Path) -> None:
    data = load_data(str(paint(tmp_path, count=20, mode="L")), test_fraction=0.5)
    assert data.image_shape == (1, 8, 8)
    assert data.test.labels.bincount().tolist() == [10, 10]


def test_val_is_the_test_set_where_there_is_no_other(tmp_path: Path) -> None:
    paint(tmp_path / "train")
    paint(tmp_path / "val", count=2)
    assert len(load_data(tmp_path).test) == 4


def test_images_of_different_size_are_resized(tmp_path: Path) -> None:
    paint(tmp_path / "train", size=(20, 10))
    paint(tmp_path / "test", size=(9, 9))
    with pytest.warns(UserWarning, match="pictures of 2 sizes are resized to 64x64: choose with image_size"):
        data = load_data(tmp_path)
    assert data.image_shape == (3, 64, 64) and "resized to 64x64" in data.describe()
    assert load_data(tmp_path, image_size=16).image_shape == (3, 16, 16)


def test_grey_of_sixteen_bits_and_with_alpha(tmp_path: Path) -> None:
    levels = {"dark": 10, "bright": 200}
    for name, level in levels.items():
        (tmp_path / name).mkdir()
        for number in range(6):
            deep = np.full((8, 8), level * 256 + 77, dtype=np.uint16)
            grey = Image.fromarray(deep) if number % 2 else Image.new("LA", (8, 8), (level, 128))
            grey.save(tmp_path / name / f"{number}.png")
    with pytest.warns(UserWarning, match=r"transparency of pictures is ignored.*\(6, such as .*0\.png\)"):
        data = load_data(str(tmp_path))
    assert data.image_shape == (1, 8, 8)
    for split in (data.train, data.test):
        means = split.images.float().mean((1, 2, 3))
        assert torch.equal(means, torch.tensor([200.0, 10.0])[split.labels])  # folders in the order of the alphabet
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tmp_path / "dark" / "9.tiff")
    with pytest.raises(DataError, match="32-bit floats"):
        load_data(str(tmp_path))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one sub-folder with images per class"):
        load_data(tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match="one sub-folder with images per class"):
        load_data(tmp_path)
    root = paint(tmp_path / "set" / "train").parent
    with pytest.raises(DataError, match="train but no test folder"):
        load_data(root)
    (paint(root / "test") / "dark").rename(root / "test" / "dusky")
    with pytest.raises(DataError, match="'dark' in one only"):
        load_data(root)
    (root / "test" / "dusky").rename(root / "test" / "dark")
    whole = (root / "test" / "dark" / "0.png").read_bytes()
    (root / "test" / "dark" / "0.png").write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"0\.png is a damaged image"):
        load_data(root)
    (root / "test" / "dark" / "0.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"0\.png is not a readable image"):
        load_data(root)
