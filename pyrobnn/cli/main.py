"""The command line: compress, groups, evaluate, inspect, methods."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyrobnn.errors import CheckpointError, ConfigError, PyrobnnError

app = typer.Typer(
    name="pyrobnn",
    help="Bayesian compression of CNNs: a posterior in, a truly smaller network out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Typer may carry click inside or beside it; its own errors lead to the base class in both cases.
_UsageError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
out_console = Console(highlight=False)
err_console = Console(stderr=True, highlight=False)

Model = Annotated[str, typer.Option("--model", help="Built-in name, torchvision name, or package.module:factory.")]
DataOption = Annotated[
    str,
    typer.Option("--data", help="digits, mnist, fashion_mnist, cifar10, cifar100, …; an .npz file; an image folder."),
]
Protect = Annotated[
    list[str] | None, typer.Option("--protect", help="Pattern of group or module names not to cut; repeatable.")
]


@app.command()
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


@app.command()
def groups(
    model: Model,
    data: Annotated[str | None, typer.Option("--data", help="Take image size and classes from this data.")] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="Channels x height x width, such as 3x32x32, instead of --data.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", help="Number of classes, without --data.", show_default="10")
    ] = None,
    protect: Protect = None,
) -> None:
    """Channel groups, their costs, and what cannot be cut and why: a dry run before hours of training."""
    import torch

    from pyrobnn.channels import channel_groups
    from pyrobnn.data import load_data
    from pyrobnn.nets import build, check_fits

    if classes is not None and classes < 1:
        raise ConfigError(f"--classes is how many there are, at least 1, got {classes}")
    if data is not None and (image is not None or classes is not None):
        raise ConfigError("--image and --classes are for a run without --data, which knows them: give one or the other")
    if data is not None:
        loaded = load_data(data)
        shape, classes = loaded.image_shape, loaded.num_classes
    else:
        shape = _image_shape(image) if image else _usual_shape(model)
    net = build(model, num_classes=classes or 10, in_channels=shape[0], image_size=shape[1])
    example = torch.zeros(2, *shape)
    check_fits(net, example)
    table = channel_groups(net, example, protect=tuple(protect or ()))
    total = table.cost(None)
    view = Table(title=f"{model}, {'x'.join(map(str, shape))}: {total.params:,} parameters, {total.macs:,} MACs")
    view.add_column("group")
    for column in ("channels", "params each", "MACs each", "tensors"):
        view.add_column(column, justify="right")
    for group in table:
        view.add_row(
            escape(group.name),
            str(group.channels),
            f"{float(group.cost.params):,.0f}",
            f"{float(group.cost.macs):,.0f}",
            str(len({member.tensor for member in group.members})),
        )
    out_console.print(view)
    for name, reason in table.refused.items():
        out_console.print(f"cannot cut {escape(name)}: {escape(reason)}", soft_wrap=True)


def _image_shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise ConfigError(f"--image is channels x height x width, such as 3x32x32, got {text!r}") from None
    if min(channels, height, width) < 1:
        raise ConfigError(f"--image needs positive sizes, got {text!r}")
    return channels, height, width


def _usual_shape(model: str) -> tuple[int, int, int]:
    """The images a network is made for, where it says so."""
    from pyrobnn.nets import BUILT_IN

    known = {"small_cnn": (1, 8, 8), "lenet5": (1, 28, 28), "lenet300": (1, 28, 28)}
    return known.get(model, (3, 32, 32) if model in BUILT_IN else (3, 224, 224))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    data: Annotated[str | None, typer.Option("--data", help="Where the data now is, if it has moved.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Measure the saved compact network again, from its files; exit code 1 if the figures differ."""
    from pyrobnn.compression.store import load_compact, read_description, read_report
    from pyrobnn.data import load_data
    from pyrobnn.inference.precision import resolve_device
    from pyrobnn.nets import check_fits
    from pyrobnn.report.report import VOLATILE, measure

    report, description = read_report(run), read_description(run)
    loaded = load_data(data or report["data"]).with_normalisation(description["mean"], description["std"])
    net = load_compact(run)
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


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    # Other processors add in another order: one example in ten thousand, and the fourth digit.
    return isinstance(a, int | float) and abs(a - b) <= 2e-4 * max(1.0, abs(a), abs(b))


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5f}" if isinstance(value, float) else str(value)


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    out: Annotated[Path | None, typer.Option("--out", help="Also write the plots as PNG files there.")] = None,
) -> None:
    """Posterior tables and plots of a run."""
    from pyrobnn.compression.store import CHECKPOINT, read_report
    from pyrobnn.io.checkpoint import load_checkpoint
    from pyrobnn.report.page import standard_figures
    from pyrobnn.summary.state import from_state

    report = read_report(run)
    if not (run / CHECKPOINT).is_file():
        raise CheckpointError(
            f"{run} has no {CHECKPOINT}, from which inspect reads the posterior: give the --out of a run"
        )
    carry = load_checkpoint(run / CHECKPOINT).get("carry", {})
    if "posterior" not in carry:
        raise CheckpointError(
            f"{run} holds no posterior: it is the run of a control, or one that has not reached a cut"
        )
    posterior = from_state(carry["posterior"])
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


@app.command()
def methods() -> None:
    """What --method takes."""
    from pyrobnn.methods.registry import METHODS

    view = Table()
    for column in ("method", "system", "cut where", "source"):
        view.add_column(column)
    for method in METHODS.values():
        view.add_row(method.name, method.title, method.cut_where, method.source)
    out_console.print(view)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one clear line and exit code 2 for bad input, 130 for Ctrl-C."""
    warnings.showwarning = _one_line_warning
    try:
        code = app(args=arguments, standalone_mode=False)
    except PyrobnnError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(error.format_message())
    except OSError as error:  # no permission, no space, a file where a directory should be
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except (typer.Abort, KeyboardInterrupt):
        _stopped()
    else:
        if code == 130:  # typer turns Ctrl-C into this
            _stopped()
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    err_console.print("error: " + escape(" ".join(message.split())), soft_wrap=True)
    sys.exit(2)


def _stopped() -> None:
    err_console.print("stopped; run the same command with --resume to go on")
    sys.exit(130)


def _one_line_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    err_console.print("warning: " + escape(" ".join(str(message).split())), soft_wrap=True)
