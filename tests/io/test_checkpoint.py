"""Checkpoints: plain torch opens them, and no changed byte goes unseen."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest
import torch

from pyrobnn.errors import CheckpointError
from pyrobnn.io.checkpoint import check_archive, load_checkpoint, save_checkpoint


def test_plain_torch_opens_it(tmp_path: Path) -> None:
    state = {"w": torch.randn(3, 4), "n": 3, "names": ["a", None]}
    save_checkpoint(state, tmp_path / "c.pt")
    for loaded in (torch.load(tmp_path / "c.pt", weights_only=True), load_checkpoint(tmp_path / "c.pt")):
        assert torch.equal(loaded["w"], state["w"]) and loaded["names"] == state["names"]
    assert zipfile.ZipFile(tmp_path / "c.pt").testzip() is None


def test_every_change_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint({"w": torch.randn(5), "n": 3}, path)
    whole, rng = path.read_bytes(), random.Random(0)
    for place in range(0, len(whole), 5):
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(broken))
        with pytest.raises(CheckpointError, match=r"c\.pt is damaged"):
            load_checkpoint(path)
    for end in (0, 1, 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    save_checkpoint([1, 2], tmp_path / "list.pt")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no state dict"):
        load_checkpoint(tmp_path / "list.pt")
    save_checkpoint({"f": print}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="not one of pyrobnn's"):
        load_checkpoint(tmp_path / "code.pt")


def test_a_checkpoint_of_an_earlier_version_has_the_checksums_of_its_entries(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(500.0)}, tmp_path / "old.pt")
    whole = (tmp_path / "old.pt").read_bytes()
    for place in (None, *range(3, len(whole), 11)):
        broken = bytearray(whole)
        if place is not None:
            broken[place] ^= 16
        (tmp_path / "old.pt").write_bytes(bytes(broken))
        try:
            loaded = load_checkpoint(tmp_path / "old.pt")
        except CheckpointError:
            assert place is not None
        else:  # padding and dates of the archive may change
            assert torch.equal(loaded["w"], torch.arange(500.0)), place


def test_archives_that_would_explode(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(1000)}, stream)
    check_archive(stream.getvalue(), "fine.pt")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    with pytest.raises(CheckpointError, match=r"bomb\.pt would unpack"):
        check_archive(bomb.getvalue(), "bomb.pt")
    with pytest.raises(CheckpointError, match="not a readable torch file"):
        check_archive(b"PK", "no.pt")
