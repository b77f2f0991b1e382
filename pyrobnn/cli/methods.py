"""`pyrobnn methods`: lists the values of `--method`."""

from __future__ import annotations

from rich.markup import escape
from rich.padding import Padding

from pyrobnn.cli.console import out_console


def methods() -> None:
    """What --method takes."""
    from pyrobnn.methods.registry import METHODS

    for method in METHODS.values():
        out_console.print(f"[bold]{escape(method.name)}[/]")
        for label, words in (("", method.title), ("cuts where: ", method.cut_where), ("source: ", method.source)):
            out_console.print(Padding(f"[dim]{label}[/]{escape(words)}", (0, 0, 0, 4)))
