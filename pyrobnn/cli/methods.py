"""`pyrobnn methods`: what --method takes."""

from __future__ import annotations

from rich.table import Table

from pyrobnn.cli.console import out_console


def methods() -> None:
    """What --method takes."""
    from pyrobnn.methods.registry import METHODS

    view = Table()
    for column in ("method", "system", "cut where", "source"):
        view.add_column(column)
    for method in METHODS.values():
        view.add_row(method.name, method.title, method.cut_where, method.source)
    out_console.print(view)
