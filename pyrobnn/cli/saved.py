"""Loads a run directory together with its data, for the commands that run the saved network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrobnn.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from pyrobnn.data import Data

SavedData = Annotated[str | None, typer.Option("--data", help="Where the data now is, if it has moved.")]
SavedModel = Annotated[
    str | None, typer.Option("--model", help="The network, where the run was made from one of your own.")
]


@dataclass(frozen=True)
class SavedRun:
    """What a command gets: `report.json`, `compact.json`, the compact network, and data normalised as in the run."""

    report: dict[str, Any]
    description: dict[str, Any]
    net: nn.Module
    data: Data


def saved_run(run: Path, data: str | None, model: str | None) -> SavedRun:
    """Read a run directory and its data.

    Args:
        run: the directory.
        data: what `--data` says; by default what the report names, which is not downloaded.
        model: what `--model` says; a network that the directory names is built only if it is one of ours or torchvision's.

    Raises:
        PyrobnnError: files, network or data that are missing, damaged or do not fit each other.
    """
    from pyrobnn.compression.store import build_compact, read_description, read_report
    from pyrobnn.data import load_data
    from pyrobnn.data.named import TORCHVISION, cache_dir
    from pyrobnn.data.sources import TASKS
    from pyrobnn.io.manifest import RunFiles
    from pyrobnn.nets import build, check_fits

    with RunFiles(run) as files:
        report, description = read_report(files), read_description(files)
        named = report["data"]
        if data is None and named in TORCHVISION and not (cache_dir() / f"{named}.npz").exists():
            raise DataError(f"{run} was made on {named}, which is not here: give --data {named} to fetch it")
        settings = dict(report.get("data_settings") or {})
        if report.get("task") in TASKS:
            settings["task"] = report["task"]
        loaded = load_data(data or named, **settings).with_normalisation(description["mean"], description["std"])
        channels, *sides = loaded.image_shape
        sizes: dict[str, Any] = {"num_classes": loaded.num_classes, "in_channels": channels, "image_size": tuple(sides)}
        net = build_compact(files, None if model is None else lambda: build(model, **sizes))
    check_fits(net, loaded.example, loaded.num_classes)
    return SavedRun(report, description, net, loaded)
