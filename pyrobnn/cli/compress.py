"""`pyrobnn compress`: from a dense network to a compact one, into a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import pyrobnn
from pyrobnn.cli.console import out_console
from pyrobnn.cli.options import DataOption, Model, with_config_options
from pyrobnn.errors import ConfigError

STYLES = {"good": "green", "bad": "bold red", "note": "yellow", "plain": "bold"}


@with_config_options(own=("out",))
def compress(
    model: Model,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Run directory, written as the run goes on.")],
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Train the compact architecture of --plan from fresh weights (a control)."),
    ] = False,
    plan: Annotated[Path | None, typer.Option("--plan", help="plan.json for --from-scratch.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 where the target was missed.")] = False,
    **options: Any,
) -> None:
    """Train, infer, cut, tune, and write a run directory."""
    # Before torch is loaded, so that it is seen at once.
    first = f"pyrobnn {pyrobnn.__version__}: {model} on {data}, {options['method']}, into {out}"
    out_console.print(escape(first), soft_wrap=True)
    from pyrobnn.channels import PruningPlan
    from pyrobnn.compression.compress import compress as run
    from pyrobnn.io.processes import together
    from pyrobnn.report.headline import target_lines

    if from_scratch != (plan is not None):
        raise ConfigError("--from-scratch and --plan go together: the plan says which architecture to train")
    given = {name: value for name, value in options.items() if value is not None}
    with together() as processes:
        if plan is not None:
            given["from_scratch"] = processes.first_does(lambda: PruningPlan.load(plan))
        result = run(model, data, out=out, **given)
    out_console.print(summary_table(result.report))
    out_console.print(spent(result.report), style="dim", soft_wrap=True)
    for line in target_lines(result.report):
        out_console.print(f"[{STYLES[line['kind']]}]{escape(line['head'])}[/] {escape(line['text'])}", soft_wrap=True)
    out_console.print(
        f"written to {escape(str(out))}: report.json, report.html, compact.safetensors, plan.json", style="dim"
    )
    if strict and result.report["target"].get("met") is False:
        raise typer.Exit(3)


def summary_table(report: dict[str, Any]) -> Table:
    """Dense beside compact, for the terminal."""
    dense, small, gone = report["dense"], report["compact"], report["reduction"]
    table = Table(title=escape(f"{report['model']} on {report['data']}, {report['method']}"))
    for column in ("", "dense", "compact", "change"):
        table.add_column(column, justify="left" if not column else "right")
    if "accuracy" in dense:
        drop = 100 * (small["accuracy"] - dense["accuracy"])
        shown = (f"{100 * dense['accuracy']:.2f} %", f"{100 * small['accuracy']:.2f} %", f"{drop:+.2f} pt")
        table.add_row("test accuracy", *shown)
    else:
        change = small["value"] - dense["value"]
        table.add_row(f"test {dense['metric']}", f"{dense['value']:.4g}", f"{small['value']:.4g}", f"{change:+.3g}")
    for key, label in (("macs", "MACs"), ("params", "parameters")):
        table.add_row(label, f"{dense[key]:,}", f"{small[key]:,}", f"{-100 * gone[key]:.1f} %")
    for key, label, digits in (("nll", "NLL", 4), ("ece", "ECE", 4), ("latency_ms", "latency (ms)", 2)):
        if key not in dense:
            continue
        change = small[key] - dense[key]
        table.add_row(label, f"{dense[key]:.{digits}f}", f"{small[key]:.{digits}f}", f"{change:+.{digits}f}")
    bayesian, robust = report.get("bayesian"), report.get("robustness")
    if bayesian is not None:
        table.add_row("NLL, ECE, posterior", "", f"{bayesian['nll']:.4f}, {bayesian['ece']:.4f}", "")
    for row in robust["noise"] if robust is not None else ():
        change = f"{100 * (row['compact'] - row['dense']):+.2f} pt"
        table.add_row(
            f"with noise {row['sigma']:g}", f"{100 * row['dense']:.2f} %", f"{100 * row['compact']:.2f} %", change
        )
    if robust is not None:
        table.add_row("same class", "", f"{100 * robust['agreement']:.2f} %", "")
    return table


def spent(report: dict[str, Any]) -> str:
    """Epochs, time and settings of a run in one line."""
    phases = ", ".join(f"{n} {phase}" for phase, n in report["epochs_by_phase"].items())
    return (
        f"{report['epochs']} epochs ({phases}), {report['seconds']:.0f} s, seed {report['seed']}, {report['precision']}"
    )
