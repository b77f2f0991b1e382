"""Named sets, .npz files and arrays, good and bad."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from pyrobnn.data import Augment, load_data
from pyrobnn.data.named import TORCHVISION, cache_dir
from pyrobnn.errors import DataError


def arrays(shape: tuple[int, ...] = (6, 5), train: int = 40, test: int = 10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (train, *shape), dtype=np.uint8),
        "y_train": np.arange(train) % 4,
        "x_test": rng.integers(0, 256, (test, *shape), dtype=np.uint8),
        "y_test": np.arange(test) % 4,
    }


def save(path: Path, **changes: Any) -> Path:
    np.savez(path, **{key: value for key, value in (arrays() | changes).items() if value is not None})
    return path


# Digits and named sets.


def test_digits() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.valid), len(data.test)) == (1078, 120, 599)
    assert data.image_shape == (1, 8, 8) and data.num_classes == 10
    assert data.train.images.max() == 255 and data.train.images.dtype == torch.uint8
    assert load_data("digits").fingerprint == data.fingerprint
    assert load_data("digits", split_seed=1).fingerprint != data.fingerprint
    shifted = load_data("digits", augment=Augment(shift=1))
    assert shifted.train.augment == shifted.augmentation == Augment(shift=1)
    assert shifted.valid.augment is None and shifted.test.augment is None
    assert load_data(data) is data


def test_validation_part_is_cut_from_the_training_part() -> None:
    data = load_data("digits", valid_fraction=0.25)
    whole = load_data("digits", valid_fraction=0)
    assert len(whole.valid) == 0
    assert len(data.train) + len(data.valid) == len(whole.train)
    assert torch.equal(data.test.images, whole.test.images)
    rows = {image.numpy().tobytes() for image in whole.train.images}
    assert {image.numpy().tobytes() for image in data.valid.images} <= rows


def test_a_named_set_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROBNN_DATA", str(tmp_path))
    save(tmp_path / "kmnist.npz")
    data = load_data("kmnist")
    assert data.name == "kmnist" and data.augmentation == Augment(shift=2)
    assert load_data("kmnist", augment=None).train.augment is None
    # The same file by its path is a user's own file: no augmentation unless asked for.
    assert load_data(tmp_path / "kmnist.npz").augmentation is None


class _Fetched(Dataset[Any]):
    """Stands in for a torchvision data set, which this test must not download."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        assert download and Path(root).is_dir()
        self.part = "train" if train else "test"

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(arrays()[f"x_{self.part}"][index % 10]), index % 4


def test_a_missing_named_set_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROBNN_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr("torchvision.datasets.KMNIST", _Fetched)
    data = load_data("kmnist")
    assert len(data.test) == 20 and data.image_shape == (1, 6, 5)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["kmnist.npz"]
    monkeypatch.setattr("torchvision.datasets.KMNIST", None)
    assert load_data("kmnist").fingerprint == data.fingerprint


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nlong story")

    monkeypatch.setenv("PYROBNN_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.KMNIST", offline)
    with pytest.raises(DataError, match=r"cannot fetch kmnist .*or put .*kmnist\.npz there") as caught:
        load_data("kmnist")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_every_named_set_exists_in_torchvision() -> None:
    import torchvision

    assert all(issubclass(getattr(torchvision.datasets, entry[0]), Dataset) for entry in TORCHVISION.values())


def test_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROBNN_DATA", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("PYROBNN_DATA")
    assert cache_dir().name == "pyrobnn"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar-10", "did you mean cifar10"),
        ("digit", "did you mean digits"),
        ("qqqqqq", "known are digits, mnist"),
        ("some/where", "not found"),
        ("nowhere.npz", "not found"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(name)


@pytest.mark.slow
def test_real_sets(shared_data: Path) -> None:
    data = load_data(shared_data / "mnist.npz")
    assert (len(data.train), len(data.valid), len(data.test)) == (54_000, 6_000, 10_000)
    assert data.mean[0] == pytest.approx(0.1307, abs=5e-4) and data.std[0] == pytest.approx(0.3081, abs=5e-4)
    data = load_data(shared_data / "cifar10.npz")
    assert data.train.labels.bincount().tolist() == [4500] * 10
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-4)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=5e-4)


# .npz files.


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 5), (1, 6, 5)),
        ((6, 5, 3), (3, 6, 5)),
        ((3, 6, 5), (3, 6, 5)),
        ((6, 6, 7), (7, 6, 6)),
        ((7, 6, 6), (7, 6, 6)),
        ((3, 4, 4), (3, 4, 4)),
        ((4, 4, 3), (3, 4, 4)),
        ((1, 28, 28), (1, 28, 28)),
    ],
)
def test_layouts(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    given = arrays(shape)
    data = load_data(save(tmp_path / "a.npz", **given))
    assert data.image_shape == expected
    pixels = torch.from_numpy(given["x_test"])
    if expected != shape and len(shape) == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    assert torch.equal(data.test.images, pixels.reshape(-1, *expected))


def test_labels_of_keras_shape_and_any_integer_type(tmp_path: Path) -> None:
    labels = arrays()["y_train"].astype(np.uint8)[:, None]
    data = load_data(save(tmp_path / "a.npz", y_train=labels))
    assert data.num_classes == 4 and data.train.labels.dtype == torch.int64


def test_a_file_is_read_again_only_if_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.npz")
    first = load_data(path)
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", None)
        assert load_data(path).fingerprint == first.fingerprint
    save(path, x_train=arrays(train=41)["x_train"], y_train=arrays(train=41)["y_train"])
    assert load_data(path).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "'y_test' is missing"),
        (
            {"x_train": arrays()["x_train"] / 255},
            r"x_train expected uint8 pixels 0-255, got float64; .*\(x \* 255\)",
        ),
        ({"x_train": arrays()["x_train"].astype(int)}, r"got int64; convert them with \.astype"),
        ({"x_train": arrays((2, 7, 9))["x_train"]}, "could be NHWC or NCHW"),
        ({"x_train": np.zeros((40, 5), dtype=np.uint8)}, r"expected images \[N, H, W\]"),
        ({"x_test": arrays((6, 6))["x_test"]}, r"\[C, H, W\] = \[1, 6, 5\], got \[1, 6, 6\]"),
        ({"y_train": np.arange(39) % 4}, "got 40 images and 39 labels"),
        ({"y_train": np.zeros(40, dtype=int)}, "at least two classes"),
        ({"y_train": np.arange(40) % 4 - 1}, "labels from 0, got -1"),
        ({"y_train": np.arange(40) % 4 + 1}, "no training image with label 0"),
        ({"y_train": (np.arange(40) % 4).astype(float)}, "integer labels, got float64"),
        ({"y_train": np.eye(4, dtype=int)[np.arange(40) % 4]}, "one-hot"),
        ({"y_test": np.arange(10)}, "test labels 0-3 .*got 9"),
        ({"x_test": np.zeros((0, 6, 5), dtype=np.uint8), "y_test": np.zeros(0, dtype=int)}, "got none"),
        ({"x_train": arrays()["x_train"][:4], "y_train": np.arange(4)}, "at least 2 images of a class"),
        ({"y_train": np.array([None] * 40)}, "not a readable .npz"),
    ],
)
def test_bad_npz_gives_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_data(path)
    assert "\n" not in str(caught.value)


def test_damaged_and_other_files(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="not a readable .npz"):
        load_data(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match="got one array"):
        load_data(tmp_path / "b.npy")
    (tmp_path / "c.npz").write_bytes(b"")
    with pytest.raises(DataError, match="not a readable .npz"):
        load_data(tmp_path / "c.npz")


@pytest.mark.parametrize(
    "settings",
    [{"valid_fraction": 1.0}, {"valid_fraction": -0.1}, {"test_fraction": 0.0}, {"test_fraction": 1.5}],
)
def test_fractions(settings: dict[str, float]) -> None:
    with pytest.raises(DataError, match=f"expected a {next(iter(settings))}"):
        load_data("digits", **settings)  # type: ignore[arg-type]


def test_given_normalisation_wins(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz")
    assert load_data(path, mean=[0.0], std=[1.0]).mean == (0.0,)
    assert load_data(path, mean=[0.0]).std == load_data(path).std


@pytest.mark.parametrize("name", ["valid", "val"])
def test_a_validation_part_of_the_file_is_used(tmp_path: Path, name: str) -> None:
    more = {f"x_{name}": np.full((8, 6, 5), 77, np.uint8), f"y_{name}": np.arange(8) % 4}
    data = load_data(save(tmp_path / "a.npz", **more))
    assert len(data.train) == 40 and len(data.valid) == 8 and data.valid.images.unique().tolist() == [77]
    with pytest.warns(UserWarning, match="arrays of other names are left out: extra"):
        load_data(save(tmp_path / "b.npz", extra=np.zeros(3)))
    with pytest.raises(DataError, match="validation labels 0-3"):
        load_data(save(tmp_path / "c.npz", **(more | {f"y_{name}": np.full(8, 4)})))


def test_files_that_would_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrobnn.data.npz.ANY_FILE", 1 << 20)
    np.savez_compressed(tmp_path / "zeros.npz", **(arrays() | {"x_test": np.zeros((4, 1000, 1000), np.uint8)}))
    with pytest.raises(DataError, match="zeros.npz would unpack to 4,00"):
        load_data(tmp_path / "zeros.npz")
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        for key, array in arrays().items():
            stream = io.BytesIO()
            np.save(stream, array)
            content = stream.getvalue()
            if key == "x_train":
                content = content.replace(b"(40, 6, 5), ", b"(9999999999, 6, 5), ".ljust(12))[: len(content) + 8]
            archive.writestr(f"{key}.npy", content)
    with pytest.raises(DataError, match="not a readable .npz"):
        load_data(tmp_path / "lies.npz")
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 10**4)})
    with zipfile.ZipFile(tmp_path / "promises.npz", "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", stream.getvalue())
    with pytest.raises(DataError, match="promises 100,000,000,000 bytes and has"):
        load_data(tmp_path / "promises.npz")


@pytest.mark.parametrize("largest", [10**6, 10**12, 2**62, 2**64 - 1])
def test_huge_labels_take_no_memory(largest: int) -> None:
    labels = np.arange(40, dtype=np.uint64) % 4
    labels[7] = largest
    with pytest.raises(DataError, match=r"number the classes from 0|fit 64 bits"):
        load_data((arrays()["x_train"], labels))
    with pytest.raises(DataError, match=r"number the classes from 0|fit 64 bits|test labels 0-3"):
        load_data(((arrays()["x_train"], np.arange(40) % 4), (arrays()["x_train"], labels)))


def test_types_that_would_be_scaled_differently() -> None:
    pixels, labels = arrays()["x_train"], np.arange(40) % 4
    with pytest.raises(
        DataError, match=r"test images of the type of the training images, torch.float32, got torch.uint8"
    ):
        load_data(((pixels / 255.0, labels), (pixels, labels)))
    with pytest.warns(UserWarning, match="are they scaled alike"):
        load_data(((pixels / 255.0, labels), (pixels * 1.0, labels)))
    for odd in (1e200, np.inf, np.nan):
        wrong = pixels / 255.0
        wrong[3, 2, 1] = odd
        for source in ((wrong, labels), TensorDataset(torch.from_numpy(wrong)[:, None], torch.from_numpy(labels))):
            with pytest.raises(DataError, match="finite pixels of single precision"):
                load_data(source)


def test_two_arrays_are_images_and_labels() -> None:
    keras = arrays()
    for images in (keras["x_train"], torch.from_numpy(keras["x_train"])):
        data = load_data((images, keras["y_train"].tolist()), test_fraction=0.5)
        assert (len(data.train), len(data.valid), len(data.test)) == (16, 4, 20) and data.image_shape == (1, 6, 5)
    pair = load_data(((keras["x_train"], keras["y_train"]), (keras["x_test"], keras["y_test"])))
    assert pair.image_shape == (1, 6, 5)
    three = load_data(tuple((images[:k], keras["y_train"][:k]) for k in (40, 8, 12)))
    assert (len(three.train), len(three.valid), len(three.test)) == (40, 8, 12)


def test_image_size_is_used_everywhere(tmp_path: Path) -> None:
    assert load_data("digits", image_size=12).image_shape == (1, 12, 12)
    assert load_data(save(tmp_path / "a.npz"), image_size=4).image_shape == (1, 4, 4)
    assert load_data((arrays()["x_train"], np.arange(40) % 4), image_size=4).image_shape == (1, 4, 4)
    for size in (0, 100_000):
        with pytest.raises(DataError, match="image_size from 1 to 8192"):
            load_data("digits", image_size=size)
