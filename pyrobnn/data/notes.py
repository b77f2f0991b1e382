"""Collects remarks on what a source leaves out, reduces or guesses, and reports each kind once."""

from __future__ import annotations

import warnings


class Notes:
    """Counts remarks by kind, with the first place each was made.

    >>> notes = Notes()
    >>> notes.add("hidden names are left out", ".cache")
    >>> notes.add("hidden names are left out", ".old")
    >>> notes.lines()
    ['hidden names are left out (2, such as .cache)']
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, where: str = "", count: int = 1) -> None:
        """One more remark of a kind; `where` is kept from the first."""
        number, first = self._found.get(kind, (0, where))
        self._found[kind] = (number + count, first)

    def lines(self) -> list[str]:
        """One line per kind."""
        return [
            kind if not where else f"{kind} ({where})" if number == 1 else f"{kind} ({number:,}, such as {where})"
            for kind, (number, where) in self._found.items()
        ]

    def warn(self, source: str) -> None:
        """A `UserWarning` per kind, then a clean slate."""
        for line in self.lines():
            warnings.warn(f"{source}: {line}", UserWarning, stacklevel=4)
        self._found.clear()
