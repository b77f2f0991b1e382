"""`Option`: how one option of a run is shown, and how values given as text are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyrobnn.errors import ConfigError


@dataclass(frozen=True)
class Option:
    """How an option is shown and used; the metadata of a field of :class:`CompressionConfig` under `"option"`.

    Attributes:
        help: one line, for the command line and the API reference.
        kind: type of one value: `int`, `float`, `str`, `bool` or `Path`.
        many: given repeatedly on the command line, a sequence in Python.
        shown: has a flag of its own on the command line.
        target: part of what is asked for, in the report under `target`.
        same: a resume must be given the same value.
        data: one of :func:`~pyrobnn.load_data`, for data that is loaded here.
        name: of the field, in Python.
        default: where it is not given.
    """

    help: str
    kind: type
    many: bool = False
    shown: bool = True
    target: bool = False
    same: bool = True
    data: bool = False
    name: str = ""
    default: Any = None

    @property
    def flag(self) -> str:
        """`--target-macs` of `target_macs`."""
        return flags([self.name])


def flags(names: Iterable[str]) -> str:
    """The flags of these options, for a message."""
    return " and ".join("--" + name.replace("_", "-") for name in names)


def described(kind: type, help: str, **how: Any) -> dict[str, Option]:
    """The metadata of a field."""
    return {"option": Option(help, kind, **how)}


def plain(value: Any) -> Any:
    """A Python number for a NumPy one."""
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


def multiple(value: Any) -> int | str | None:
    """What `--round-to` says: text of a command line becomes a number, unless it is `auto`."""
    if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool)):
        found: int | str | None = value
        return found
    try:
        if isinstance(value, str):
            return int(value)
    except ValueError:
        pass
    raise ConfigError(f"--round-to expected a whole number or auto, got {value!r}")


def assignment(text: str) -> tuple[str, Any]:
    """`cutout=0.25` as a name and a number, or a word where it is none."""
    name, equals, value = str(text).partition("=")
    if not (name and equals and value):
        raise ConfigError(f"--recipe takes NAME=VALUE, such as cutout=0.25, got {text!r}")
    for kind in (int, float):
        try:
            return name.strip(), kind(value)
        except ValueError:
            continue
    return name.strip(), {"none": None, "true": True, "false": False}.get(value.strip().lower(), value.strip())
