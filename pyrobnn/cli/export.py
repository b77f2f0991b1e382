"""`pyrobnn export`: the compact network for use without pyrobnn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pyrobnn.cli.console import out_console
from pyrobnn.cli.saved import SavedData, SavedModel, saved_run


def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    format: Annotated[str, typer.Option("--format", help="onnx, or torch (a .pt2 of torch.export).")] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; by default compact.onnx or compact.pt2 in the run.")
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Put the normalisation inside: the file takes pixels in 0-1.")
    ] = False,
    data: SavedData = None,
    model: SavedModel = None,
) -> None:
    """Write the compact network as ONNX or torch.export, compared with it on images of the run's data first."""
    from pyrobnn.compression.export import FORMATS
    from pyrobnn.compression.export import export as write
    from pyrobnn.errors import ConfigError
    from pyrobnn.io.manifest import add_to_manifest

    if format not in FORMATS:
        raise ConfigError(f"--format must be onnx or torch, got {format!r}")
    saved = saved_run(run, data, model)
    images, _ = next(iter(saved.data.train.batches(64)))
    inside = (saved.data.mean, saved.data.std) if normalise else None
    target = out or run / f"compact{FORMATS[format]}"
    made = write(saved.net, images[:64], target, format=format, normalise=inside)
    add_to_manifest(run, target)
    out_console.print(escape(str(made)), soft_wrap=True)
