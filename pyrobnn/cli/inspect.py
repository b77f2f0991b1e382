"""`pyrobnn inspect`: the posterior of a run in tables and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pyrobnn.cli.console import out_console
from pyrobnn.errors import CheckpointError


def inspect(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    out: Annotated[Path | None, typer.Option("--out", help="Also write the plots as PNG files there.")] = None,
) -> None:
    """Posterior tables and plots of a run."""
    from pyrobnn.compression.load import load_run
    from pyrobnn.report.page import standard_figures

    found = load_run(run)
    report, posterior = found.report, found.posterior
    if not posterior.channels:
        raise CheckpointError(f"{run} holds no posterior: it is the run of a control")
    view = Table(title=f"{escape(str(run))}: {report['method']}, statistic per channel at the decision")
    for column in ("group", "statistic", "channels", "kept", "min", "median", "max", "lowest kept"):
        view.add_column(column, justify="left" if column in ("group", "statistic") else "right")
    for name, channel in posterior.channels.items():
        values, kept = channel.snr.float(), channel.kept
        view.add_row(
            escape(name),
            channel.statistic,
            str(len(values)),
            str(int(kept.sum())),
            f"{values.min():.3g}",
            f"{values.median():.3g}",
            f"{values.max():.3g}",
            f"{values[kept].min():.3g}" if kept.any() else "–",
        )
    out_console.print(view)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for title, figure in standard_figures(posterior, report).items():
            path = out / (title.lower().replace(" ", "-").replace(",", "") + ".png")
            figure.savefig(path, dpi=150)
            out_console.print(f"wrote {escape(str(path))}", soft_wrap=True)
