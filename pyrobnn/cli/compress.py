"""`pyrobnn compress`: the whole way, into a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import pyrobnn
from pyrobnn.cli.console import out_console
from pyrobnn.cli.options import DataOption, Model, Protect
from pyrobnn.errors import ConfigError


def compress(
    model: Model,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Run directory to write.")],
    method: Annotated[str, typer.Option("--method", help="See pyrobnn methods.")] = "ard",
    weights: Annotated[Path | None, typer.Option("--weights", help="Safetensors file of the dense network.")] = None,
    target_macs: Annotated[
        float | None, typer.Option("--target-macs", help="Fraction of the dense MACs that may be left, in (0, 1).")
    ] = None,
    target_params: Annotated[
        float | None, typer.Option("--target-params", help="Fraction of the dense parameters that may be left.")
    ] = None,
    target_nonzero: Annotated[
        float | None,
        typer.Option("--target-nonzero", help="Fraction that may be other than zero, where single weights are zeroed."),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Percentage points of validation accuracy that may be lost; instead of a size.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Full passes over the training data, in all.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Wall-clock time instead of --epochs.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, shuffling, augmentation and sampling.")] = 0,
    protect: Protect = None,
    min_channels: Annotated[int, typer.Option("--min-channels", help="Channels that each group keeps at least.")] = 1,
    round_to: Annotated[int | None, typer.Option("--round-to", help="Kept channels are multiples of this.")] = None,
    estimator: Annotated[
        str | None, typer.Option("--estimator", help="weight, local or moments (default: the method's own).")
    ] = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Train the compact architecture of --plan from fresh weights (a control)."),
    ] = False,
    plan: Annotated[Path | None, typer.Option("--plan", help="plan.json for --from-scratch.")] = None,
    bayesian_epochs: Annotated[
        int, typer.Option("--bayesian-epochs", help="Passes for a posterior of the compact weights, on top of --epochs.")
    ] = 0,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")] = False,
) -> None:
    """Train, infer, cut, tune, and write a run directory."""
    # Before torch is loaded, so that it is seen at once.
    out_console.print(escape(f"pyrobnn {pyrobnn.__version__}: {model} on {data}, {method}, into {out}"), soft_wrap=True)
    from pyrobnn.channels import PruningPlan
    from pyrobnn.compression.compress import compress as run

    if from_scratch != (plan is not None):
        raise ConfigError("--from-scratch and --plan go together: the plan says which architecture to train")
    result = run(
        model,
        data,
        method,
        weights=weights,
        target_macs=target_macs,
        target_params=target_params,
        target_nonzero=target_nonzero,
        max_drop=max_drop,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        protect=protect or (),
        min_channels=min_channels,
        round_to=round_to,
        estimator=estimator,
        from_scratch=PruningPlan.load(plan) if plan is not None else None,
        bayesian_epochs=bayesian_epochs,
        precision=precision,
        device=device,
        out=out,
        resume=resume,
    )
    out_console.print(summary_table(result.report))
    out_console.print(
        f"written to {escape(str(out))}: report.json, report.html, compact.safetensors, plan.json", style="dim"
    )


def summary_table(report: dict[str, Any]) -> Table:
    """Dense beside compact, for the terminal."""
    dense, small, gone = report["dense"], report["compact"], report["reduction"]
    table = Table(title=escape(f"{report['model']} on {report['data']}, {report['method']}"))
    for column in ("", "dense", "compact", "change"):
        table.add_column(column, justify="left" if not column else "right")
    drop = 100 * (small["accuracy"] - dense["accuracy"])
    table.add_row(
        "test accuracy", f"{100 * dense['accuracy']:.2f} %", f"{100 * small['accuracy']:.2f} %", f"{drop:+.2f} pt"
    )
    for key, label in (("macs", "MACs"), ("params", "parameters")):
        table.add_row(label, f"{dense[key]:,}", f"{small[key]:,}", f"{-100 * gone[key]:.1f} %")
    for key, label, digits in (("nll", "NLL", 4), ("ece", "ECE", 4), ("latency_ms", "latency (ms)", 2)):
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
        table.add_row("same answer", "", f"{100 * robust['agreement']:.2f} %", "")
    phases = ", ".join(f"{n} {phase}" for phase, n in report["epochs_by_phase"].items())
    table.caption = (
        f"{report['epochs']} epochs ({phases}), {report['seconds']:.0f} s, seed {report['seed']}, {report['precision']}"
    )
    return table
