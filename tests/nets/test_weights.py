"""Weights files: what fits, what does not, and that nothing is half done."""

from __future__ import annotations

import zipfile
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


# Files that training scripts write


STATE = nets.small_cnn().state_dict()


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_prefixes_of_wrappers_are_taken_away(prefix: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    tensors = {prefix + key: value.clone() for key, value in STATE.items()}
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    net = nets.small_cnn()
    nets.load_weights(net, path)
    assert all(torch.equal(value, STATE[key]) for key, value in net.state_dict().items())


def test_a_compiled_part_and_an_averaged_model(tmp_path: Path) -> None:
    inner = {key.replace("conv2.", "conv2._orig_mod."): value.clone() for key, value in STATE.items()}
    averaged = torch.optim.swa_utils.AveragedModel(nets.small_cnn())
    averaged.module.load_state_dict(STATE)
    for k, tensors in enumerate((inner, averaged.state_dict())):
        torch.save(tensors, tmp_path / f"{k}.pt")
        net = nets.small_cnn()
        nets.load_weights(net, tmp_path / f"{k}.pt")
        assert all(torch.equal(value, STATE[key]) for key, value in net.state_dict().items())


def test_a_net_that_has_such_names_itself(tmp_path: Path) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nets.small_cnn()

    nets.save_weights(Wrapped(), tmp_path / "w.safetensors")
    net = Wrapped()
    nets.load_weights(net, tmp_path / "w.safetensors")
    save_file({f"module.{key}": value.clone() for key, value in net.state_dict().items()}, tmp_path / "x.safetensors")
    nets.load_weights(Wrapped(), tmp_path / "x.safetensors")


@pytest.mark.parametrize("prefix", ["net.", "model.backbone."])
def test_other_prefixes_are_named(prefix: str, tmp_path: Path) -> None:
    save_file({prefix + key: value.clone() for key, value in STATE.items()}, tmp_path / "w.safetensors")
    with pytest.raises(NetError, match=f"the prefix '{prefix}'.*take it from the names"):
        nets.load_weights(nets.small_cnn(), tmp_path / "w.safetensors")

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nets.small_cnn()

    nets.save_weights(nets.small_cnn(), tmp_path / "bare.safetensors")
    with pytest.raises(NetError, match=r"the prefix 'net\.'.*add it to the names"):
        nets.load_weights(Outer(), tmp_path / "bare.safetensors")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_what_torch_saved(key: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    optimiser = torch.optim.Adam(nets.small_cnn().parameters()).state_dict()
    torch.save({key: STATE, "epoch": 3, "optimizer": optimiser}, path)
    net = nets.small_cnn()
    info = nets.load_weights(net, path)
    assert info.trained_on == "all" and torch.equal(net.conv1.weight, STATE["conv1.weight"])
    torch.save(STATE, path, _use_new_zipfile_serialization=False)  # as torch wrote before 1.6
    nets.load_weights(nets.small_cnn(), path)


class Calls:
    """What a pickle may hold."""

    def __reduce__(self) -> object:
        return print, ("run by a file",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nets.small_cnn(), "cannot be read without running code"),
        ({"state_dict": Calls()}, "cannot be read without running code"),
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({1: torch.ones(2)}, "holds no state dict"),
        ({**STATE, "epoch": 3}, "expected a tensor under 'epoch', got int"),
        ({**STATE, "fc2.bias": torch.ones(10).to_sparse()}, "no dense tensor|cannot be read"),
        ({**STATE, "fc2.bias": torch.empty(10, device="meta")}, "no dense tensor"),
        ({**STATE, "fc2.bias": torch.ones(1).expand(10**12)}, "expected shape"),
        ({**STATE, "fc2.bias": torch.ones(10, dtype=torch.complex64)}, "expected float32, got complex64"),
        ({**STATE, "fc2.bias": torch.ones(10, dtype=torch.long)}, "expected float32, got int64"),
        ({**STATE, "bn1.num_batches_tracked": torch.tensor(0.5)}, "expected int64, got float32"),
        ({**STATE, "fc2.bias": torch.full((10,), float("inf"))}, "NaN or infinity"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_torch_saved_and_is_no_weights_file(
    content: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, net = tmp_path / "w.pth", nets.small_cnn()
    torch.save(content, path)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises((NetError, CheckpointError), match=words) as raised:
        nets.load_weights(net, path)
    assert str(path) in str(raised.value) and len(str(raised.value).splitlines()) == 1
    assert "run by" not in capsys.readouterr().out
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as whole,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in whole.infolist():
            bomb.writestr(entry.filename, whole.read(entry))
    with pytest.raises(CheckpointError, match=r"b\.pt would unpack to more than its size"):
        nets.load_weights(nets.small_cnn(), tmp_path / "b.pt")
