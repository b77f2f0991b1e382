"""Write the tables of README.md and docs/ from `results/*.json` and the method registry."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import criteria_tables
import numpy as np
import scaling
import speed_tables
import uncertainty
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from pyrobnn.methods.registry import METHODS
from pyrobnn.pipeline.recipe import TUNE_LR, recipes

HERE = Path(__file__).parent
ROOT = HERE.parent
CONTROL = "l1"
MUCH_LEFT = 0.45  # of the parameters, where half of every group was cut
SCRIPTS = {"gaussian": "gaussian", "ard": "channel_noise", "sbp": "channel_noise", "rbp": "channel_noise"}
SCRIPTS |= {"bayes-l1": "scores", "hbfp": "scores", "hbfp-bayes": "scores"}

MARKS = "marks"  # the folder of the rows with the package's recipe
HEADLINES = (
    "ard-lenet5-mnist-drop03",
    "ss-gl-lenet5-mnist",
    "laplace-resnet20-cifar10-m70",
    "laplace-resnet56-cifar10-m50",
    "ard-resnet56-cifar10-m215",
    "laplace-vgg16-cifar10-m25-p07",
)


def all_runs(recipe: str = "") -> dict[str, list[dict[str, Any]]]:
    """Reports of finished rows by name, one for each seed: of the folder of a recipe, or those from before there was one."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((HERE / "results" / recipe).glob("*-s[0-9]*.json")):
        runs[re.sub(r"-s\d+$", "", path.stem)].append(json.loads(path.read_text()))
    return runs


def results_table(network: str, recipe: str = "") -> str:
    """One row per name, averaged over its seeds, most MACs removed first."""
    runs = {name: reports for name, reports in all_runs(recipe).items() if reports[0]["model"] == network}
    if not runs:
        return "No row of this table is finished yet."
    lines = [
        "| data; method, asked for | seeds | dense | compact | MACs | parameters | latency, ms | epochs | minutes | recipe | file | script |",
        "|---" * 12 + "|",
    ]
    for name, reports in sorted(runs.items(), key=lambda row: -mean(r["reduction"]["macs"] for r in row[1])):
        first = reports[0]
        columns = [
            f"{Path(first['data']).stem}; `{first['method']}`, {_asked(first)}",
            " ".join(str(r["seed"]) for r in reports),
            _accuracy(reports, "dense"),
            _accuracy(reports, "compact"),
            f"−{100 * mean(r['reduction']['macs'] for r in reports):.1f} %",
            _parameters(reports),
            f"{mean(r['dense']['latency_ms'] for r in reports):.2g} → {mean(r['compact']['latency_ms'] for r in reports):.2g}",
            f"{_whole(first, 'epochs'):.4g}",
            f"{mean(_whole(r, 'seconds') for r in reports) / 60:.0f}",
            "<br>".join(sorted({_recipe(r) for r in reports})),
            f"`{recipe + '/' if recipe else ''}{name}-s*`",
            f"`{first.get('script') or SCRIPTS[first['method']]}`",
        ]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


def headlines_table() -> str:
    """A few rows for the README."""
    runs = all_runs() | all_runs(MARKS)
    lines = [
        "| network, data | method | accuracy, dense → compact | MACs | parameters | latency, ms | time |",
        "|---" * 7 + "|",
    ]
    for name in HEADLINES:
        reports = runs[name]
        first = reports[0]
        columns = [
            f"{first['model']}, {Path(first['data']).stem}",
            f"`{first['method']}`, {_asked(first)}",
            f"{_accuracy(reports, 'dense')} → {_accuracy(reports, 'compact')}",
            f"−{100 * mean(r['reduction']['macs'] for r in reports):.1f} %",
            _parameters(reports),
            f"{mean(r['dense']['latency_ms'] for r in reports):.2g} → {mean(r['compact']['latency_ms'] for r in reports):.2g}",
            f"{mean(_whole(r, 'seconds') for r in reports) / 60:.0f} min",
        ]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


def _asked(report: dict[str, Any]) -> str:
    asked = report["target"].get("asked", report["target"])
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in asked.items()) or "own rule"


def _accuracy(reports: list[dict[str, Any]], net: str) -> str:
    return f"{100 * mean(r[net]['accuracy'] for r in reports):.2f} %"


def _parameters(reports: list[dict[str, Any]]) -> str:
    """What was cut; and, where single weights are zero, what is gone in all."""
    cut, gone = (mean(r["reduction"][key] for r in reports) for key in ("params", "nonzero_params"))
    zeros = f" (with zeros −{100 * gone:.1f} %)" if gone - cut > 5e-4 else ""
    return f"−{100 * cut:.1f} %{zeros}"


def _recipe(report: dict[str, Any]) -> str:
    """How the compact network was tuned; what a file does not say was the only way at its time."""
    found = report["settings"]
    small = report["model"] in ("small_cnn", "lenet5", "lenet300")
    optimiser = {"muon": "Muon", "sgd": "SGD", "adam": "Adam"}[found.get("tune_optimizer", "adam" if small else "sgd")]
    rate = f" at {found['tune_lr']:g}" if found.get("tune_lr", TUNE_LR) != TUNE_LR and optimiser == "Muon" else ""
    parts = [optimiser + rate, f"T = {found.get('temperature', 4):g}", found.get("teacher", "every step")]
    parts += [f"{name} {found[name]:g}" for name in ("blends", "cutout") if name in found]
    return ", ".join(parts) + ("" if "temperature" in found else " (early)")


def _whole(report: dict[str, Any], key: str) -> float:
    """Epochs or seconds, with those of a dense network that rows share."""
    return float(report[key]) + float(report.get("dense_training", {}).get(key, 0))


def equal_macs_table() -> str:
    """Methods and controls at equal MACs and epochs, best first; every accuracy is the mean over its seeds."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((HERE / "results" / "equal_macs").glob("*-s[0-9]*.json")):
        report = json.loads(path.read_text())
        runs[report["method"]][f"{report['model']}, {Path(report['data']).stem}"].append(report)
    columns = sorted({network for reports in runs.values() for network in reports})
    if not columns:
        return "No row of this table is finished yet."

    def accuracy(reports: list[dict[str, Any]]) -> str:
        values = [100 * r["compact"]["accuracy"] for r in reports]
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        gone = f"−{100 * mean(r['reduction']['params'] for r in reports):.1f} %" if values else ""
        return f"{mean(values):.2f}{spread} ({len(values)}); {gone}" if values else "–"

    def rank(method: str) -> tuple[float, ...]:
        return tuple(
            -mean(r["compact"]["accuracy"] for r in runs[method][c]) if runs[method][c] else 0 for c in columns
        )

    lines = [
        "| method | "
        + " | ".join(f"{c}: accuracy, % (seeds); parameters" for c in columns)
        + f" | widths of {columns[0].split(',')[0]}, seed 0 |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for method in sorted(runs, key=rank):
        first = (runs[method][columns[0]] or [None])[0]
        widths = "–" if first is None else "-".join(str(w) for w in first["compact"]["widths"].values())
        lines.append(f"| `{method}` | " + " | ".join(accuracy(runs[method][c]) for c in columns) + f" | {widths} |")
    # The rows of a seed start from one dense network, but for those that are trained from scratch.
    apart = [told_apart(c, {m: runs[m][c] for m in runs if m != "from-scratch"}) for c in columns]
    return "\n".join([*lines, "", *(line for line in apart if line)])


def told_apart(network: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    """Whether the rows of a network differ by more than their seeds do, and from `l1`; empty unless three of them have three seeds, `l1` too.

    Two-way analysis of variance without interaction: seeds are blocks, every row of a seed having started
    from the same dense network. Intervals are 95 %, each for itself.
    """
    accuracy = {m: {r["seed"]: 100 * r["compact"]["accuracy"] for r in reports} for m, reports in rows.items()}
    names = sorted((m for m, row in accuracy.items() if len(row) > 2), key=lambda m: -mean(accuracy[m].values()))
    values = np.array([[accuracy[m][seed] for seed in sorted(accuracy[m])] for m in names])
    if len(values) < 3 or CONTROL not in names:
        return ""
    means = values.mean(1)
    methods, seeds = values.shape
    within, free, test = analysed(values)
    margin = t_distribution.ppf(0.975, free) * (2 * within / seeds) ** 0.5
    gaps = {m: float(means[k] - means[names.index(CONTROL)]) for k, m in enumerate(names) if m != CONTROL}
    apart = [f"`{m}` {gap:+.2f}" for m, gap in gaps.items() if abs(gap) > margin]
    others = values[[k for k, m in enumerate(names) if m != "random"]]
    without = f" (without `random`: {analysed(others)[2]})" if 2 < len(others) < len(values) else ""
    return (
        f"{network}: the means of the {methods} rows with {seeds} seeds have a standard deviation of {means.std(ddof=1):.2f} points, "
        f"one run has {within**0.5:.2f} (which makes {(within / seeds) ** 0.5:.2f} of a mean). "
        f"Test of no difference at all: {test}{without}. "
        f"A row differs from `{CONTROL}` where it is more than {margin:.2f} points away: {', '.join(apart) or 'none does'}."
    )


def analysed(values: np.ndarray) -> tuple[float, int, str]:
    """Of accuracies `[methods, seeds]`: variance of one run, its degrees of freedom, the test of equal means in words."""
    methods, seeds = values.shape
    means = values.mean(1, keepdims=True)
    left = values - means - values.mean(0) + values.mean()
    free = (methods - 1) * (seeds - 1)
    within = float((left**2).sum() / free)
    ratio = seeds * means.var(ddof=1) / within
    p = f_distribution.sf(ratio, methods - 1, free)
    return within, free, f"F = {ratio:.2f}, p {'< 0.001' if p < 0.001 else f'= {p:.2f}'}"


def recipes_table(what: str) -> str:
    """Accuracy of the rows of `recipes.py` (`dense` or `tune`) on validation images, best first."""
    found = json.loads((HERE / "results" / "recipes.json").read_text())[what]
    if what == "dense":
        lines = ["| trained from nothing | validation images, % |", "|---|---|"]
        return "\n".join(
            lines + [f"| `{name}` | {found[name]:.2f} |" for name in sorted(found, key=lambda n: -found[n])]
        )
    lines = ["| tuned | validation images, % | more than `base` | seeds |", "|---|---|---|---|"]
    for name, row in sorted(found.items(), key=lambda entry: -entry[1]["valid"]):
        spread = "" if row["gain_sd"] is None else f" ± {row['gain_sd']:.2f}"
        gain = "–" if name == "base" or row["gain"] is None else f"{row['gain']:+.2f}{spread}"
        lines.append(f"| `{name}` | {row['valid']:.2f} | {gain} | {row['seeds']} |")
    return "\n".join(lines)


def methods_table() -> str:
    """What `pyrobnn methods` prints, as Markdown."""
    lines = ["| `--method` | system | cut where | source |", "|---|---|---|---|"]
    lines += [f"| `{m.name}` | {m.title} | {m.cut_where} | {m.source} |" for m in METHODS.values()]
    return "\n".join(lines)


def settings_table(names: str) -> str:
    """What the recipes of some methods set, beside one another; `names` are separated by blanks."""
    columns: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    usual = {kind: dict(_flat(getattr(recipes(), kind).identity())) for kind in ("small", "deep")}
    for name in names.split():
        for kind in usual:
            columns.append(f"`{name}`, {kind}")
            for path, value in _flat(getattr(METHODS[name].recipes, kind).identity()):
                rows.setdefault(path, {})[columns[-1]] = value
    lines = ["| setting | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for path, found in rows.items():
        differs = any(value != usual[column.split(", ")[1]].get(path) for column, value in found.items())
        if differs or path in ALWAYS:
            lines.append(f"| `{path}` | " + " | ".join(_cell(found.get(column, "–")) for column in columns) + " |")
    return "\n".join(lines)


ALWAYS = ("infer.lr", "infer.guide_lr", "kl_weight", "estimator", "rounds", "infer_share", "infer_distillation")


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if (isinstance(value, Mapping) and "kind" not in value) or (isinstance(value, Mapping) and not prefix):
            yield from _flat(value, f"{prefix}{key}.")
        elif key != "kind":
            yield prefix + key, value


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for k, v in value.items() if k != "kind")
        return f"{value['kind']}({inside})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def step_cost_table() -> str:
    """Cost of a training step relative to the plain one, by network and precision; as many columns as are measured."""
    found = json.loads((HERE / "results" / "step_cost.json").read_text())
    networks = {name: entry for name, entry in found.items() if name != "versions"}
    rows = list(dict.fromkeys(name for entry in networks.values() for name in entry["steps"]))
    lines = ["| step | " + " | ".join(networks) + " |", "|---" * (len(networks) + 1) + "|"]
    for row in rows:
        cells = [entry["steps"].get(row) for entry in networks.values()]
        lines.append(
            f"| {row} | " + " | ".join(f"{c['ms']:.0f} ms, × {c['ratio']:.2f}" if c else "–" for c in cells) + " |"
        )
    return "\n".join(lines)


def any_net_table(library: str) -> str:
    """What can be cut of the families of a library: share left, and the first reason where it is much."""
    found = json.loads((HERE / "results" / "any_net.json").read_text())["rows"]
    rows = {name.partition("/")[2]: row for name, row in found.items() if name.startswith(f"{library}/")}
    lines = ["| network | pixels | groups | parameters left | error | seconds | what is not cut |", "|---" * 7 + "|"]
    for name, row in sorted(rows.items()):
        if "left" not in row:
            lines.append(f"| {name} | – | – | – | – | – | {row.get('failed') or row['skipped']} |")
            continue
        reasons = [why for why in row["refused"] if why != "reaches the network's output"]
        shown = reasons[0] if reasons and row["left"] > MUCH_LEFT else ""
        lines.append(
            f"| {name} | {row['pixels']} | {row['groups']} | {100 * row['left']:.1f} % | {row['error']:.0e} | "
            f"{row['seconds']:.0f} | {shown} |"
        )
    return "\n".join(lines)


def any_net_summary() -> str:
    """How many families, and how many of them are mostly cut."""
    found = json.loads((HERE / "results" / "any_net.json").read_text())["rows"]
    done = [row for row in found.values() if "left" in row]
    wrong = sum(row["error"] > 1e-4 for row in done)
    little = sum(row["left"] <= MUCH_LEFT for row in done)
    return (
        f"{len(done)} networks: {wrong} with another output than the masked network; at most "
        f"{100 * MUCH_LEFT:.0f} % of the parameters left in {little}."
    )


TABLES: dict[str, Callable[[str], str]] = {
    "any_net": any_net_table,
    "any_net_summary": lambda _: any_net_summary(),
    "methods": lambda _: methods_table(),
    "settings": settings_table,
    "results": results_table,
    "marks": lambda words: results_table(words.split()[0], "-".join([MARKS, *words.split()[1:]])),
    "recipes": recipes_table,
    "headlines": lambda _: headlines_table(),
    "uncertainty": lambda _: uncertainty.all_tables(),
    "step_cost": lambda _: step_cost_table(),
    "scaling": lambda _: scaling.table(),
    "latency": lambda _: speed_tables.latency(),
    "latency_targets": lambda _: speed_tables.targets(),
    "latency_profile": lambda _: speed_tables.profile(),
    "growth": lambda _: speed_tables.growth(),
    "processes": lambda _: speed_tables.processes(),
    "equal_macs": lambda _: equal_macs_table(),
    "criteria": criteria_tables.untuned,
    "criteria_overview": lambda _: criteria_tables.overview(),
    "criteria_tuned": criteria_tables.tuned,
    "criteria_compared": criteria_tables.compared,
    "criteria_two_way": criteria_tables.two_way,
    "criteria_moved": criteria_tables.moved,
}


def filled(text: str) -> str:
    """The text with every table between `<!-- name argument -->` and `<!-- /name -->` made anew."""

    def table(found: re.Match[str]) -> str:
        name, argument = found["name"], (found["argument"] or "").strip()
        return f"{found['start']}\n{TABLES[name](argument)}\n<!-- /{name} -->"

    pattern = r"(?P<start><!-- (?P<name>\w+)(?P<argument> [^>]*?)? -->)\n.*?<!-- /(?P=name) -->"
    return re.sub(pattern, table, text, flags=re.DOTALL)


def pages() -> list[Path]:
    """Files that have such tables."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if re.search(r"<!-- /\w+ -->", path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
