"""Checkpoints: one file, written atomically, with its checksum, and loaded without running code.

The file is what `torch.save` writes, an uncompressed zip archive, so `torch.load(path, weights_only=True)`
opens it. The archive's comment, at the very end, is the SHA-256 of all bytes before it.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pyrobnn.errors import CheckpointError
from pyrobnn.io.files import read_bytes, write_bytes

_LENGTH = 64  # of a SHA-256 in hexadecimal
_END = b"PK\x05\x06"  # the record that ends a zip archive; its last two bytes are the length of the comment
_END_SIZE = 22
_ZIP_ERRORS = (zipfile.BadZipFile, ValueError, OSError, RuntimeError, NotImplementedError, EOFError, struct.error)


def save_checkpoint(state: dict[str, Any], path: str | Path) -> None:
    """Write `state`, of tensors and plain values, whole or not at all.

    Raises:
        OSError: it cannot be written; the old file is then as it was.
    """
    stream = io.BytesIO()
    torch.save(state, stream)
    write_bytes(path, seal(stream.getvalue()))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, with `weights_only=True`.

    Raises:
        CheckpointError: no such file, not a whole checkpoint, or one that changed since it was written.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: start without --resume")
    data = read_bytes(path, starts_right=_ends_right)
    if not is_sealed(data) and not _is_whole(data):
        raise CheckpointError(f"checkpoint {path} is damaged: delete it and start afresh")
    check_archive(data, path)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what it cannot read
        raise CheckpointError(f"checkpoint {path} is not one of pyrobnn's: delete it and start afresh") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} holds no state dict: delete it and start afresh")
    return state


def seal(archive: bytes) -> bytes:
    """A zip archive without a comment, with its SHA-256 as the comment."""
    assert archive[-_END_SIZE:].startswith(_END), "torch.save writes archives without a comment"
    body = archive[:-2] + _LENGTH.to_bytes(2, "little")
    return body + hashlib.sha256(body).hexdigest().encode()


def is_sealed(data: bytes) -> bool:
    """Whether bytes are what :func:`seal` returned, unchanged."""
    body, comment = data[:-_LENGTH], data[-_LENGTH:]
    return body[-_END_SIZE:].startswith(_END) and hashlib.sha256(body).hexdigest().encode() == comment


def _ends_right(file: BinaryIO, size: int) -> bool:
    """Whether an open file ends like an archive, sealed or not."""
    file.seek(max(0, size - _END_SIZE - _LENGTH))
    return _END in file.read()


def _is_whole(data: bytes) -> bool:
    """Whether an archive without a seal, of an earlier version, agrees with the check sums (CRC-32) of its entries."""
    if data[-_END_SIZE:][:4] != _END:
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.testzip() is None
    except _ZIP_ERRORS:
        return False


def check_archive(data: bytes, path: str | Path) -> None:
    """Refuse an archive that would unpack to more than itself; `torch.save` never compresses.

    Raises:
        CheckpointError: a compressed entry, or entries that overlap.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except _ZIP_ERRORS as error:
        raise CheckpointError(f"{path} is not a readable torch file ({error}): copy it again") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(
        entry.file_size for entry in entries
    ) > len(data):
        raise CheckpointError(f"{path} would unpack to more than its size: expected a file written by torch.save")
