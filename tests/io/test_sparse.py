"""Compressed state dicts: bit-equal, smaller, and safe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pyrobnn.errors import CheckpointError
from pyrobnn.io.sparse import load_sparse, load_sparse_metadata, save_sparse


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
    )


def scattered(shape: tuple[int, ...], density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < density, value, 0.0)


def states() -> dict[str, Tensor]:
    kernels = torch.where(torch.rand(32, 16, 1, 1) < 0.1, torch.randn(32, 16, 3, 3), 0.0)
    odd = scattered((50, 70), 0.05)
    odd[3, 3], odd[4, 4], odd[5, 5] = -0.0, float("nan"), float("inf")
    far = torch.zeros(3000)
    far[[0, 256, 257, 513, 2999]] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    return {
        "dense": torch.randn(20, 30),
        "half": scattered((40, 50), 0.5),
        "rare": scattered((100, 200), 0.02),
        "kernels": kernels,
        "rows": torch.where(torch.rand(300, 1) < 0.2, torch.randn(300, 64), 0.0),
        "odd": odd,
        "far": far,
        "masked": torch.randn(90, 90) * (torch.rand(90, 90) < 0.05),
        "zeros": torch.zeros(7, 11, 3, 3),
        "scalar": torch.tensor(3.0),
        "count": torch.tensor(0),
        "empty": torch.zeros(0, 4),
        "strided": scattered((40, 30), 0.1).T,
        "channels_last": kernels.clone(memory_format=torch.channels_last),
        "fp16": scattered((60, 60), 0.1).half(),
        "bf16": scattered((60, 60), 0.1).bfloat16(),
        "fp8": scattered((60, 60), 0.1).to(torch.float8_e4m3fn),
        "double": scattered((60, 60), 0.3).double(),
        "index": (scattered((900,), 0.1) * 100).long(),
        "mask": scattered((900,), 0.1) != 0,
        "a::values": torch.randn(3),
    }


def test_every_tensor_comes_back_bit_equal(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = states()
    forms = save_sparse(state, tmp_path / "s.safetensors", {"who": "me"})
    loaded = load_sparse(tmp_path / "s.safetensors")
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert same_bits(tensor, loaded[name]), name
    assert forms["dense"] == forms["scalar"] == "dense"
    assert forms["half"] == "bitmap"
    assert forms["rare"] == "gaps"
    assert forms["kernels"] == forms["rows"] == "blocks"
    assert load_sparse_metadata(tmp_path / "s.safetensors") == {"who": "me"}


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02, 0.001])
def test_the_file_is_really_smaller(tmp_path: Path, density: float) -> None:
    state = {"w": scattered((256, 64, 3, 3), density)}
    save_file(state, tmp_path / "dense.safetensors")
    save_sparse(state, tmp_path / "sparse.safetensors")
    dense = (tmp_path / "dense.safetensors").stat().st_size
    sparse = (tmp_path / "sparse.safetensors").stat().st_size
    count = int((state["w"] != 0).sum())
    # Values, one index byte each or a bit per element, bridges over long runs, and a header.
    assert sparse <= 4 * count + min(count + 5 * 147456 // 256, 147456 // 8) + 600
    assert sparse < dense * (density * 1.6 + 0.03)


def test_masks_by_multiplication_still_shrink(tmp_path: Path) -> None:
    """Half of the zeros are -0.0 then: they cost one bit per element, and stay -0.0."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 300, generator=generator) * (torch.rand(300, 300, generator=generator) < 0.02)
    assert int(((weight == 0) & weight.signbit()).sum()) > 40_000
    save_sparse({"w": weight}, tmp_path / "s.safetensors")
    assert (tmp_path / "s.safetensors").stat().st_size < 0.07 * 4 * weight.numel()
    assert same_bits(load_sparse(tmp_path / "s.safetensors")["w"], weight)


def test_no_tensor_grows(tmp_path: Path) -> None:
    state = {"w": torch.randn(64, 64), "b": torch.zeros(3)}
    save_file(state, tmp_path / "dense.safetensors")
    save_sparse(state, tmp_path / "sparse.safetensors")
    extra = (tmp_path / "sparse.safetensors").stat().st_size - (tmp_path / "dense.safetensors").stat().st_size
    assert extra < 400  # the table in the metadata


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.safetensors"
    save_sparse({"w": torch.ones(3)}, path)

    def broken(handle: int) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        save_sparse({"w": torch.zeros(3)}, path)
    assert torch.equal(load_sparse(path)["w"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    torch.manual_seed(0)
    save_sparse(states(), path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    generator = torch.Generator().manual_seed(1)
    for place in torch.randint(header, len(whole), (40,), generator=generator).tolist():
        broken = bytearray(whole)
        broken[place] ^= 0x10
        path.write_bytes(bytes(broken))
        try:
            loaded = load_sparse(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:  # only padding bits of a bitmap may change without changing a tensor
            torch.manual_seed(0)
            assert all(same_bits(t, loaded[n]) for n, t in states().items())
    for end in (0, 5, header - 3, header + 10, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="damaged"):
            load_sparse(path)
    path.write_bytes(b"not a safetensors file at all, but long enough")
    with pytest.raises(CheckpointError, match="damaged"):
        load_sparse(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        load_sparse(tmp_path / "none.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="not a compressed"):
        load_sparse(tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="dtype"):
        save_sparse({"w": torch.ones(2, dtype=torch.complex64)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="metadata key"):
        save_sparse({}, tmp_path / "c.safetensors", {"pyrobnn.sparse": "x"})
