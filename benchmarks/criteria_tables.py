"""Tables of the cells of `criteria.py`, for `tables.py`."""

from __future__ import annotations

from functools import cache
from math import isnan, nan
from typing import Any

from criteria_summary import CONTROLS, PAIRED, POSTERIORS, SHARES, summary

NETWORKS = {"resnet20": "ResNet-20", "vgg16": "VGG-16", "lenet5": "LeNet-5"}
OVERVIEW = ("laplace", "ard", "ss-gl", "group-fisher", "taylor", "l1", "random")


@cache
def _of(network: str) -> dict[str, Any]:
    found: dict[str, Any] = summary().get(network, {})
    return found


def untuned(network: str) -> str:
    """Accuracy right after the cut, of the given network; of what inference left in brackets."""
    found = _of(network)
    rows = {**found.get("untuned", {}), **found.get("given", {})}
    if not rows:
        return "No cell of this table is finished yet."
    shares = [f"{100 * share:g} % of the MACs" for share in SHARES]
    lines = ["| criterion | seeds | " + " | ".join(shares) + " | rank correlation with single removals | CPU seconds |"]
    lines.append("|---" * (len(SHARES) + 4) + "|")
    for name in sorted(rows, key=lambda name: -rows[name]["shares"]["0.6"]["accuracy"]):
        row, own = rows[name], found["untuned"][name] if name in found.get("given", {}) else None
        cells = []
        for share in map(str, SHARES):
            left = f" ({own['shares'][share]['accuracy']:.1f})" if own is not None else ""
            cells.append(f"{row['shares'][share]['accuracy']:.1f}{left}")
        oracle = f"{row['oracle_correlation']:.2f}" if "oracle_correlation" in row else "–"
        lines.append(f"| `{name}` | {row['seeds']} | {' | '.join(cells)} | {oracle} | {row['cpu_seconds']:.0f} |")
    return "\n".join(lines)


def tuned(network: str) -> str:
    """Accuracy after tuning, one column for each share and number of epochs."""
    found = _of(network).get("tuned", {})
    settings = sorted(found, key=lambda s: (float(s.split()[0]), -float(s.split()[-1])))
    if not settings:
        return "No cell of this table is finished yet."
    names = {name for setting in settings for name in found[setting]}
    heads = [f"{s.split()[0]} epochs at {100 * float(s.split()[-1]):g} %" for s in settings]
    lines = ["| criterion | " + " | ".join(heads) + " |", "|---" * (len(settings) + 1) + "|"]
    for name in sorted(names, key=lambda n: ([-found[s].get(n, {"accuracy": 0})["accuracy"] for s in settings], n)):
        cells = [found[s].get(name) for s in settings]
        text = [f"{c['accuracy']:.2f} ({c['seeds']})" if c else "–" for c in cells]
        lines.append(f"| `{name}` | {' | '.join(text)} |")
    return "\n".join(lines)


def overview(share: float = 0.3) -> str:
    """Accuracy of the given networks at one share of the MACs, right after the cut and after tuning."""
    lines = [f"| network, epochs of tuning | {' | '.join(f'`{name}`' for name in OVERVIEW)} |"]
    lines.append("|---" * (len(OVERVIEW) + 1) + "|")
    for network, title in NETWORKS.items():
        found = _of(network)
        rows = {**found.get("untuned", {}), **found.get("given", {})}
        settings = {"0": {name: row["shares"][str(share)] for name, row in rows.items()}}
        for epochs in ("0.5", "8"):
            settings[epochs] = found.get("tuned", {}).get(f"{epochs} epochs at {share}", {})
        for epochs, figures in settings.items():
            cells = [f"{figures[name]['accuracy']:.1f}" if name in figures else "–" for name in OVERVIEW]
            if figures:
                lines.append(f"| {title}, {epochs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(network: str) -> str:
    """Paired differences to the controls, with Holm's p; one row for each posterior and setting."""
    found = _of(network).get("tests", {})
    controls = [name for name in CONTROLS if any(name in row for rows in found.values() for row in rows.values())]
    if not controls:
        return "No comparison of this table has three seeds yet."
    lines = ["| setting | criterion | " + " | ".join(f"over `{name}`" for name in controls) + " |"]
    lines.append("|---" * (len(controls) + 2) + "|")
    for setting in sorted(found, key=lambda s: (float(s.split()[0]), -float(s.split()[-1]))):
        for ours in POSTERIORS:
            row = found[setting].get(ours)
            if row:
                cells = [f"{row[c]['gain']:+.2f}, p = {row[c]['p']:.2g}" if c in row else "–" for c in controls]
                epochs, share = setting.split()[0], 100 * float(setting.split()[-1])
                lines.append(f"| {epochs} epochs, {share:g} % | `{ours}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def two_way(network: str) -> str:
    """Widths by row, channels by column."""
    found = _of(network).get("two_way", {})
    names = [name for name in PAIRED if f"widths {name}, channels {name}" in found]
    if not names:
        return "No cell of this table is finished yet."
    lines = ["| widths of | " + " | ".join(f"channels of `{name}`" for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for a in names:
        cells = [f"{found[f'widths {a}, channels {b}']['accuracy']:.1f}" for b in names]
        lines.append(f"| `{a}` | {' | '.join(cells)} |")
    seeds = min(found[f"widths {a}, channels {b}"]["seeds"] for a in names for b in names)
    return "\n".join([*lines, "", f"Seeds: {seeds}."])


MOVED = {
    "log_scale_change": "median change of log σ",
    "correlation_with_start": "rank correlation with the start",
    "correlation_with_l1": "with L1 norms",
    "correlation_with_l2": "with L2 norms",
    "correlation_with_bn_scale": "with BatchNorm scales",
    "start_seconds": "start, s",
    "fit_seconds": "fit, s",
    "cpu_seconds": "CPU, s",
}


def moved(network: str) -> str:
    """How far one epoch of inference moves each posterior, and what its costs have in common with norms."""
    found = _of(network).get("moved", {})
    if not found:
        return "No cell of this table is finished yet."
    keys = [key for key in MOVED if any(key in row for row in found.values())]
    lines = ["| method | seeds | " + " | ".join(MOVED[key] for key in keys) + " |", "|---" * (len(keys) + 2) + "|"]
    for name, row in found.items():
        cells = [
            "–" if isnan(row.get(key, nan)) else f"{row[key]:.0f}" if key.endswith("seconds") else f"{row[key]:.2f}"
            for key in keys
        ]
        lines.append(f"| `{name}` | {row['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines)
