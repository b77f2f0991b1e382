"""`manifest.json`: the SHA-256 of every file of a run directory, verified when one of them is read.

    {"schema": 1, "files": {"compact.safetensors": {"sha256": "…", "bytes": 18240}, …}}

It is written last and removed before a finished run is changed, so a directory has either no manifest
or one that fits. It protects from damage, not from tampering: anyone can write a manifest. What a
loader does with a file does not depend on it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from pyrobnn.errors import CheckpointError
from pyrobnn.io.container import starts_right
from pyrobnn.io.files import is_short, is_temporary, parse_json, read_bytes, write_json
from pyrobnn.io.lock import LOCK

MANIFEST = "manifest.json"
_STARTS = {
    ".json": is_short,
    ".safetensors": starts_right,
    ".nc": lambda file, size: file.read(4) in (b"\x89HDF", b"CDF\x01", b"CDF\x02"),
}
_SCHEMA = 1


def write_manifest(folder: str | Path) -> Path:
    """Write the checksums of all files in a folder and below it."""
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): _entry(path.read_bytes()) for path in _files(folder)}
    return write_json(folder / MANIFEST, {"schema": _SCHEMA, "files": files})


def add_to_manifest(folder: str | Path, path: str | Path) -> None:
    """Enter a file that was put into a finished run later; does nothing for a file elsewhere, or without a manifest.

    Raises:
        CheckpointError: a damaged manifest.
    """
    folder, path = Path(folder).resolve(), Path(path).resolve()
    manifest = folder / MANIFEST
    if not path.is_relative_to(folder) or not manifest.exists():
        return
    content = _content(manifest)
    content["files"][path.relative_to(folder).as_posix()] = _entry(path.read_bytes())
    write_json(manifest, content)


class RunFiles:
    """The files of a run directory, checked against its manifest as they are read.

    To be used in a `with` statement: a directory without a manifest, written by an earlier version, gets one
    warning, when all that is wanted from it has been read.

    Args:
        folder: the run directory.

    Raises:
        CheckpointError: a damaged manifest.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._entries: dict[str, Any] | None = None
        path = self.folder / MANIFEST
        if not path.exists():
            return
        self._entries = _content(path)["files"]

    def __enter__(self) -> RunFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._entries is None:
            warnings.warn(
                f"{self.folder} has no {MANIFEST}: its files were read without checking that they are as they were written",
                stacklevel=3,
            )

    def has(self, name: str) -> bool:
        """Whether the directory has such a file, or should have one."""
        return (self.folder / name).exists() or name in (self._entries or {})

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            CheckpointError: missing, or not as it was when the run was written.
        """
        path = self.folder / name
        said = None if self._entries is None else self._entries.get(name)
        listed = said.get("bytes") if isinstance(said, dict) else None

        def worth_reading(file: BinaryIO, size: int) -> bool:
            if self._entries is not None:
                return size == listed
            return _STARTS.get(path.suffix, lambda file, size: True)(file, size)

        try:
            data = read_bytes(path, "expected a run directory written by pyrobnn compress", starts_right=worth_reading)
            changed = self._entries is not None and said != _entry(data)
        except CheckpointError:
            if self._entries is None or not path.is_file():
                raise
            changed = True
        if changed:
            what = "changed since the run was written" if said is not None else f"not in {MANIFEST}"
            raise CheckpointError(f"{path} is damaged or was edited ({what}): copy the directory again")
        return data

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file.

        Raises:
            CheckpointError: as :meth:`read`, or no JSON object.
        """
        return parse_json(self.read(name), self.folder / name)


def _content(path: Path) -> dict[str, Any]:
    content = parse_json(read_bytes(path, starts_right=is_short), path)
    if content.get("schema") != _SCHEMA or not isinstance(content.get("files"), dict):
        raise CheckpointError(f"{path} is damaged (no files of schema {_SCHEMA}): delete it to load without checking")
    return content


def _files(folder: Path) -> Iterable[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and not is_temporary(path) and path.name not in (MANIFEST, LOCK)
    )


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
