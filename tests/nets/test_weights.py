"""Weights files: what fits, what does not, and that nothing is half done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pyrobnn import nets
from pyrobnn.errors import CheckpointError, NetError


def test_round_trip_with_metadata(tmp_path: Path) -> None:
    net = nets.small_cnn().to(memory_format=torch.channels_last)
    path = tmp_path / "new" / "net.safetensors"
    nets.save_weights(net, path, mean=(0.25,), std=(0.5,), trained_on="train", epochs=3)
    other = nets.small_cnn()
    info = nets.load_weights(other, path)
    assert (info.mean, info.std, info.trained_on) == ((0.25,), (0.5,), "train")
    assert info.metadata["epochs"] == "3"
    own = net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in other.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_a_file_that_says_nothing_has_seen_all_images(tmp_path: Path) -> None:
    net = nets.small_cnn()
    nets.save_weights(net, tmp_path / "net.safetensors")
    info = nets.load_weights(net, tmp_path / "net.safetensors")
    assert (info.mean, info.std, info.trained_on) == (None, None, "all")


def test_half_precision_is_cast(tmp_path: Path) -> None:
    net = nets.lenet5()
    save_file({key: value.half() for key, value in net.state_dict().items()}, tmp_path / "h.safetensors")
    other = nets.lenet5()
    nets.load_weights(other, tmp_path / "h.safetensors")
    assert other.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(other.fc1.weight, net.fc1.weight, rtol=1e-3, atol=1e-7)


def test_constants_of_the_architecture_may_be_missing(tmp_path: Path) -> None:
    net = nets.resnet20()
    kept = {
        key: value
        for key, value in net.state_dict().items()
        if "shortcut" not in key and "num_batches_tracked" not in key
    }
    save_file(kept, tmp_path / "r.safetensors")
    other = nets.resnet20()
    nets.load_weights(other, tmp_path / "r.safetensors")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(other.eval()(x), net.eval()(x))


def test_saved_channel_maps_are_loaded(tmp_path: Path) -> None:
    net = nets.resnet20()
    net.layer2[0].shortcut.weight[8] = 0
    nets.save_weights(net, tmp_path / "r.safetensors")
    other = nets.resnet20()
    nets.load_weights(other, tmp_path / "r.safetensors")
    assert other.layer2[0].shortcut.weight[8] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("fc1.bias"), "lacks 'fc1.bias'"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected 'extra'"),
        (
            lambda tensors: tensors.update({"fc2.bias": torch.zeros(9)}),
            r"'fc2.bias' expected shape \(10,\), got \(9,\)",
        ),
        (lambda tensors: tensors["fc2.bias"].fill_(float("nan")), "'fc2.bias' holds NaN"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    tensors = {key: value.clone() for key, value in nets.lenet5().state_dict().items()}
    change(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    net = nets.lenet5()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(NetError, match=message):
        nets.load_weights(net, tmp_path / "w.safetensors")
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    nets.save_weights(nets.lenet5(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        nets.load_weights(nets.lenet5(), path)
    with pytest.raises(CheckpointError, match="not found"):
        nets.load_weights(nets.lenet5(), tmp_path / "other.safetensors")


def test_bad_metadata(tmp_path: Path) -> None:
    nets.save_weights(nets.lenet5(), tmp_path / "w.safetensors", mean="a,b")
    with pytest.raises(CheckpointError, match="metadata 'mean' expected numbers"):
        nets.load_weights(nets.lenet5(), tmp_path / "w.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    nets.save_weights(nets.lenet5(), path)
    before = path.read_bytes()

    def half_way(handle: int) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr("os.fsync", half_way)
    with pytest.raises(OSError, match="disk full"):
        nets.save_weights(nets.lenet5(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
