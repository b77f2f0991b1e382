"""`pyrobnn evaluate`: a saved network measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pyrobnn.cli.console import err_console, out_console
from pyrobnn.cli.saved import SavedData, SavedModel, saved_run


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    data: SavedData = None,
    model: SavedModel = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Measure the saved compact network again, from its files; exit code 1 if the figures differ."""
    from pyrobnn.inference.precision import resolve_device
    from pyrobnn.report.report import VOLATILE, measure

    saved = saved_run(run, data, model)
    report = saved.report
    figures = measure(
        saved.net,
        saved.data,
        saved.description["widths"],
        device=resolve_device(device),
        trained_on=report.get("trained_on", "all"),
    )
    view = Table(title=f"{escape(str(run))}, measured again")
    for column in ("", "report.json", "now"):
        view.add_column(column, justify="left" if not column else "right")
    differ = []
    for key, now in figures.items():
        if key in ("metric", "value") and key not in report["compact"]:
            continue  # a report from before there were other figures than accuracy
        then = report["compact"].get(key)
        if key == "widths":
            equal = then == now
            view.add_row(key, f"{len(then or {})} groups", "the same" if equal else "differ")
        else:
            equal = key in VOLATILE or _close(then, now)
            view.add_row(key, _figure(then), _figure(now))
        if not equal:
            differ.append(key)
    out_console.print(view)
    if differ:
        err_console.print(f"figures differ: {', '.join(differ)}")
        raise typer.Exit(1)


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, int | str) and isinstance(b, int | str):
        return a == b
    # Other processors add in another order: one example in ten thousand, and the fourth digit.
    return isinstance(a, int | float) and abs(a - b) <= 2e-4 * max(1.0, abs(a), abs(b))


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5f}" if isinstance(value, float) else str(value)
