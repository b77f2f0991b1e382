"""`pyrobnn evaluate`: a saved network measured again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pyrobnn.cli.console import err_console, out_console
from pyrobnn.errors import DataError

if TYPE_CHECKING:
    from pyrobnn.data import Data


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    data: Annotated[str | None, typer.Option("--data", help="Where the data now is, if it has moved.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The network, where the run was made from one of your own.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Measure the saved compact network again, from its files; exit code 1 if the figures differ."""
    from pyrobnn.compression.store import build_compact, read_description, read_report
    from pyrobnn.inference.precision import resolve_device
    from pyrobnn.io.manifest import RunFiles
    from pyrobnn.nets import build, check_fits
    from pyrobnn.report.report import VOLATILE, measure

    with RunFiles(run) as files:
        report, description = read_report(files), read_description(files)
        loaded = _data(run, report["data"], data).with_normalisation(description["mean"], description["std"])
        channels, *sides = loaded.image_shape
        sizes: dict[str, Any] = {"num_classes": loaded.num_classes, "in_channels": channels, "image_size": tuple(sides)}
        net = build_compact(files, None if model is None else lambda: build(model, **sizes))
    check_fits(net, loaded.example, loaded.num_classes)
    figures = measure(
        net,
        loaded,
        description["widths"],
        device=resolve_device(device),
        trained_on=report.get("trained_on", "all"),
    )
    view = Table(title=f"{escape(str(run))}, measured again")
    for column in ("", "report.json", "now"):
        view.add_column(column, justify="left" if not column else "right")
    differ = []
    for key, now in figures.items():
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


def _data(run: Path, named: str, given: str | None) -> Data:
    """The data that was given, or else what the report names; what only a file names is not downloaded."""
    from pyrobnn.data import load_data
    from pyrobnn.data.named import TORCHVISION, cache_dir

    if given is None and named in TORCHVISION and not (cache_dir() / f"{named}.npz").exists():
        raise DataError(f"{run} was made on {named}, which is not here: give --data {named} to fetch it")
    return load_data(given or named)


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    # Other processors add in another order: one example in ten thousand, and the fourth digit.
    return isinstance(a, int | float) and abs(a - b) <= 2e-4 * max(1.0, abs(a), abs(b))


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5f}" if isinstance(value, float) else str(value)
