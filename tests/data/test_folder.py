"""What counts in an image folder: parts, hidden names, links, files that are no pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
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
