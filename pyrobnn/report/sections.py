"""What the report page says, section by section, as plain data for the template.

Every key of the report may be missing: a section without content is left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrobnn.report.figures import as_dict, is_number
from pyrobnn.report.headline import SIZES, figure
from pyrobnn.report.wording import DASH, flat, percent, plain, points, relative, text

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """One section of the page; the template writes what is there, in this order: before, rows, bars, pictures, code, after."""

    id: str
    title: str
    before: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    head: Sequence[str] = ()
    text: bool = False  # the rows are words rather than numbers
    bars: Sequence[Mapping[str, Any]] = ()
    pictures: Sequence[Mapping[str, Any]] = ()
    code: Sequence[str] = ()
    after: Sequence[str] = ()


# key of a network's figures, name, how a value is written, how a change is
FIGURES: list[tuple[str, str, Callable[[float], str], Callable[[float, float], str]]] = [
    ("accuracy", "Test accuracy", percent, points),
    ("nll", "Negative log-likelihood (nats)", lambda v: f"{v:.4f}", plain),
    ("ece", "Expected calibration error, 15 bins", percent, points),
    ("brier", "Brier score", lambda v: f"{v:.4f}", plain),
    ("params", "Parameters", lambda v: f"{v:,.0f}", relative),
    ("nonzero_params", "Parameters that are not zero", lambda v: f"{v:,.0f}", relative),
    ("macs", "Multiply-accumulates, one example", lambda v: f"{v:,.0f}", relative),
    ("bytes", "Bytes", lambda v: f"{v:,.0f}", relative),
    ("latency_ms", "Median latency", lambda v: f"{v:.3g}\N{NO-BREAK SPACE}ms", relative),
]
AGAIN = "The command does the same again, up to the order in which other processors add."
LIKE_IT = "The command makes a run like it; this report is from before reports kept all options (data, recipe, …)."
MOST_CLASSES = 30  # that the page shows


def all_sections(
    report: Report, pictures: Sequence[Mapping[str, Any]], widths: Mapping[str, tuple[int, int]], load_path: str
) -> list[Section]:
    """The sections that have content, in the order of the page."""
    dense, compact = as_dict(report.get("dense")), as_dict(report.get("compact"))
    found = [
        numbers(report, dense, compact),
        accuracies(report, dense, compact),
        per_class(report),
        robustness(as_dict(report.get("robustness"))),
        bayesian(as_dict(report.get("bayesian")), compact),
        Section("channels", "Channels left", bars=_bars(widths)),
        Section("pictures", "Pictures", pictures=pictures),
        rounds(report.get("rounds") or []),
        settings(report),
        Section(
            "load",
            "Load the net",
            code=[code(load_path)],
            after=["For a class of your own, pass factory=MyNet to load_compact."],
        ),
    ]
    return [s for s in found if s.rows or s.bars or s.pictures or s.code]


def numbers(report: Report, dense: Report, compact: Report) -> Section:
    """Dense beside compact."""
    rows = []
    key, metric, written, changed = figure(report)
    judged = [] if key == "accuracy" else [(key, f"Test {metric}", written, changed)]
    for key, name, show, change in [*judged, *FIGURES]:
        a, b = dense.get(key), compact.get(key)
        if is_number(a) or is_number(b):
            both = change(a, b) if is_number(a) and is_number(b) else DASH
            rows.append([name, *(show(v) if is_number(v) else DASH for v in (a, b)), both])
    after = ["Counted on the tensors of the saved module; bytes are those of its file."]
    if is_number(compact.get("latency_ms")) and report.get("device"):
        after.append(
            f"Latency was measured on {report['device']}, batch {compact.get('latency_batch', 1)}; fewer MACs save less time where layers are small."
        )
    return Section("measured", "Measured on the nets", head=["", "dense", "compact", "change"], rows=rows, after=after)


def accuracies(report: Report, dense: Report, compact: Report) -> Section:
    """Validation beside test: what choices were made on, and what was read once."""
    key, metric, show, change = figure(report)
    validation = as_dict(report.get("validation"))
    pairs = [
        ("Validation images, on which choices are made", validation.get("dense"), validation.get("compact")),
        ("Test images, read once at the end", dense.get(key), compact.get(key)),
    ]
    rows = [
        [
            name,
            *(show(v) if is_number(v) else DASH for v in (a, b)),
            change(a, b) if is_number(a) and is_number(b) else DASH,
        ]
        for name, a, b in pairs
    ]
    if not any(is_number(value) for value in validation.values()):
        rows = []
    comparison, after = as_dict(report.get("comparison")), []
    interval = comparison.get("interval")
    if isinstance(interval, list | tuple) and len(interval) == 2 and all(map(is_number, interval)):
        after.append(
            f"Difference on the test images: 95\N{NO-BREAK SPACE}% interval {change(0, interval[0])} to {change(0, interval[1])}"
            + (f"; paired test p = {comparison['p_value']:.3g}." if is_number(comparison.get("p_value")) else ".")
        )
    return Section(
        "accuracy", "Validation and test", head=[f"{metric} on", "dense", "compact", "change"], rows=rows, after=after
    )


def per_class(report: Report) -> Section:
    """Recall of every class, so that a class that was lost is seen; of many classes those that lost most."""
    entries = [e for e in report.get("per_class") or [] if is_number(e.get("dense")) and is_number(e.get("compact"))]
    before = ["Share of each class's test images that are recognised: a mean can hide a class that was lost."]
    if len(entries) > MOST_CLASSES:
        before.append(f"The {MOST_CLASSES} of {len(entries)} classes that lost most; all of them are in report.json.")
        entries = sorted(entries, key=lambda e: e["compact"] - e["dense"])[:MOST_CLASSES]
    rows = [
        [
            text(e.get("class")),
            flat(e.get("images")),
            percent(e["dense"]),
            percent(e["compact"]),
            points(e["dense"], e["compact"]),
        ]
        for e in entries
    ]
    return Section(
        "classes", "Class by class", head=["class", "images", "dense", "compact", "change"], rows=rows, before=before
    )


def robustness(found: Report) -> Section:
    """Agreement with the dense network, and accuracy under pixel noise."""
    if not is_number(found.get("agreement")):
        return Section("robustness", "What accuracy does not show")
    rows = []
    for row in found.get("noise") or []:
        a, b = row.get("dense"), row.get("compact")
        if is_number(a) and is_number(b):
            rows.append([f"σ = {flat(row.get('sigma'))}", percent(a), percent(b), points(a, b)])
    precision = f", measured in {found['precision']}" if found.get("precision", "fp32") != "fp32" else ""
    before = [
        f"Dense and compact net name the same class for {percent(found['agreement'])} of the test images. "
        f"Accuracy under Gaussian pixel noise, σ in units of the pixel range{precision}:"
    ]
    head = ["noise", "dense", "compact", "change"]
    return Section("robustness", "What accuracy does not show", head=head, rows=rows, before=before)


def bayesian(found: Report, compact: Report) -> Section:
    """Figures of the posterior around the compact network, beside those of the compact network itself."""
    rows = []
    for key, name, show, _ in FIGURES[:3]:
        if is_number(found.get(key)) and is_number(compact.get(key)):
            rows.append([name, show(compact[key]), show(found[key])])
    before = [
        f"A Gaussian per weight, fitted around the compact net at KL weight {flat(found.get('kl_weight'))}; "
        f"predictions average {flat(found.get('draws'))} draws."
    ]
    head = ["", "weights at their values", "averaged over the posterior"]
    return Section("posterior", "The posterior of the compact net", head=head, rows=rows, before=before)


def rounds(found: Sequence[Any]) -> Section:
    """A row for each cut: what it left, and how accurate that was."""
    entries = [r for r in found if isinstance(r, Mapping)]
    keys = list(dict.fromkeys(k for r in entries for k, v in r.items() if isinstance(v, str | int | float)))
    keys = [key for key in keys if key != "round"]

    def cell(key: str, value: Any) -> str:
        if is_number(value) and "accuracy" in key:
            return percent(value)
        return f"{value:,}" if is_number(value) and isinstance(value, int) else flat(value)

    rows = [[flat(r.get("round", i)), *(cell(key, r.get(key)) for key in keys)] for i, r in enumerate(entries, start=1)]
    heads = [str(key).replace("_", " ").replace("macs", "MACs") for key in keys]
    before = ["One line per cut: what is left after it. The accuracy is the one right after the cut, before tuning."]
    return Section("rounds", "Rounds", head=["round", *heads], rows=rows if keys else [], before=before)


def settings(report: Report) -> Section:
    """What the run was told and on what it ran."""
    names = {
        "method": "Method", "model": "Net", "data": "Data", "rule": "Cut rule", "target": "Target", "seed": "Seed",
        "epochs": "Epochs in all", "epochs_by_phase": "Epochs by phase", "seconds": "Seconds", "precision": "Precision",
        "device": "Device", "validation_clean": "Validation images unseen", "settings": "Settings",
        "refused": "Not cut, and why",
    }  # fmt: skip
    shown = {**report, "seconds": round(report["seconds"])} if is_number(report.get("seconds")) else report
    rows = [[label, flat(shown[key])] for key, label in names.items() if shown.get(key) is not None]
    again = rows and report.get("command", "") is not None
    return Section(
        "settings", "What was done", rows=rows, text=True, code=[command(report)] if again else [],
        after=[AGAIN if isinstance(report.get("options"), Mapping) else LIKE_IT] if again else [],
    )  # fmt: skip


def _told(report: Report) -> dict[str, Any]:
    """The options of the run; of a report from before they were kept, the targets and the epochs."""
    phases = {name: n for name, n in as_dict(report.get("epochs_by_phase")).items() if is_number(n)}
    epochs = sum(n for name, n in phases.items() if name != "bayesian") or report.get("epochs")
    if not isinstance(report.get("options"), Mapping):
        target = as_dict(report.get("target"))
        found = {
            key: value for key, value in target.items() if is_number(value) and (key in SIZES or key == "max_drop")
        }
        return {**found, **({} if epochs is None else {"epochs": epochs})}
    told = dict(as_dict(report["options"]))
    if "minutes" in told:  # another machine does another number in that time
        told = {"epochs": epochs, **{name: value for name, value in told.items() if name != "minutes"}}
    return told


def command(report: Report) -> str:
    """The command line that makes this run again."""
    if isinstance(report.get("command"), str):
        return str(report["command"])
    words = ["pyrobnn", "compress"]
    scratch = report.get("method") == "from-scratch"
    for flag, key in (("--model", "model"), ("--data", "data"), ("--method", "method")):
        words += (
            ["--from-scratch", "--plan", "plan.json"] if key == "method" and scratch else [flag, text(report.get(key))]
        )
    for name, value in _told(report).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, Mapping):
            words += [word for entry, number in value.items() for word in (flag, f"{entry}={flat(number)}")]
        elif isinstance(value, list | tuple):
            words += [word for one in value for word in (flag, flat(one))]
        else:
            words += [flag] if value is True else [flag, f"{value:g}" if is_number(value) else flat(value)]
    for flag, key in (("--seed", "seed"), ("--precision", "precision")):
        if report.get(key) is not None:
            words += [flag, flat(report[key])]
    if as_dict(report.get("epochs_by_phase")).get("dense") == 0:
        words += ["--weights", "DENSE.safetensors"]
    return shlex.join([*words, "--out", "runs/again"])


def _bars(widths: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    return [
        {"group": text(group), "dense": int(before), "compact": int(after),
         "percent": f"{100 * min(after / max(before, 1), 1):.1f}"}
        for group, (before, after) in widths.items()
    ]  # fmt: skip


def code(load_path: str) -> str:
    """How to read the run from Python."""
    return "\n".join([
        "import pyrobnn as pb",
        "",
        f"net = pb.load_compact({load_path!r}, normalise=True)    # a plain nn.Module with the smaller tensors",
        "logits = net(images)    # pixels in 0-1, [N, C, H, W]",
        "names = net.classes    # of the outputs; empty where the data had none",
        "",
        "import arviz as az",
        "",
        f"posterior = az.from_netcdf({str(Path(load_path) / 'posterior.nc')!r})",
    ])  # fmt: skip
