"""Write the tables of README.md from `results/*.json` and the method registry."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import uncertainty
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from pyrobnn.methods.registry import METHODS

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
CONTROL = "l1"
SCRIPTS = {"gaussian": "gaussian", "ard": "channel_noise", "sbp": "channel_noise", "rbp": "channel_noise"}
SCRIPTS |= {"bayes-l1": "scores", "hbfp": "scores", "hbfp-bayes": "scores"}


def results_table() -> str:
    """One row per name, averaged over its seeds."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((HERE / "results").glob("*-s[0-9]*.json")):
        runs[re.sub(r"-s\d+$", "", path.stem)].append(json.loads(path.read_text()))
    lines = [
        "| network, data | method, asked for | seeds | dense | compact | MACs | parameters | epochs | minutes | taught "
        "| file, command |",
        "|---" * 11 + "|",
    ]
    for name, reports in runs.items():
        first = reports[0]
        asked = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in first["target"].items()) or "own rule"
        columns = [
            f"{first['model']}, {Path(first['data']).stem}",
            f"`{first['method']}`, {asked}",
            " ".join(str(r["seed"]) for r in reports),
            f"{100 * mean(r['dense']['accuracy'] for r in reports):.2f} %",
            f"{100 * mean(r['compact']['accuracy'] for r in reports):.2f} %",
            f"−{100 * mean(r['reduction']['macs'] for r in reports):.1f} %",
            _parameters(reports),
            f"{_whole(first, 'epochs'):.4g}",
            f"{mean(_whole(r, 'seconds') for r in reports) / 60:.0f}",
            "; ".join(sorted({_taught(r) for r in reports})),
            f"`{name}-s*.json`, `make bench NAME={first.get('script') or SCRIPTS[first['method']]}`",
        ]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


def _parameters(reports: list[dict[str, Any]]) -> str:
    """What was cut; and, where single weights are zero, what is gone in all."""
    cut, gone = (mean(r["reduction"][key] for r in reports) for key in ("params", "nonzero_params"))
    zeros = f" (with zeros −{100 * gone:.1f} %)" if gone - cut > 5e-4 else ""
    return f"−{100 * cut:.1f} %{zeros}"


def _taught(report: dict[str, Any]) -> str:
    """How the dense network taught while tuning; files that do not say are of a time when there was one way."""
    found = report["settings"]
    muon = "; Muon" if found.get("tune_optimizer") == "muon" else ""
    extras = "".join(f"; {name} {found[name]:g}" for name in ("blends", "cutout") if name in found)
    return f"T = {found.get('temperature', 4):g}, {found.get('teacher', 'every step')}{muon}{extras}"


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
        return tuple(-mean(r["compact"]["accuracy"] for r in runs[method][c]) if runs[method][c] else 0 for c in columns)

    lines = [
        "| method | " + " | ".join(f"{c}: accuracy, % (seeds); parameters" for c in columns) + f" | widths of {columns[0].split(',')[0]}, seed 0 |",
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


def methods_table() -> str:
    """What `pyrobnn methods` prints, as Markdown."""
    lines = ["| `--method` | system | cut where | source |", "|---|---|---|---|"]
    lines += [f"| `{m.name}` | {m.title} | {m.cut_where} | {m.source} |" for m in METHODS.values()]
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    block = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
    if f"<!-- /{name} -->" in text:
        return re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, text, flags=re.DOTALL)
    return text.replace(f"<!-- {name} -->", block)


if __name__ == "__main__":
    readme = README.read_text(encoding="utf-8")
    sections = {
        "methods": methods_table(),
        "results": results_table(),
        "uncertainty": uncertainty.all_tables(),
        "equal_macs": equal_macs_table(),
    }
    for section, table in sections.items():
        readme = fill(readme, section, table)
    README.write_text(readme, encoding="utf-8")
