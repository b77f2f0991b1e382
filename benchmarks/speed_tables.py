"""Tables of `results/latency.json`, `results/growth.json` and `results/processes.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def _found(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())
    return {network: entry for network, entry in found.items() if network != "versions"}


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def latency() -> str:
    """Milliseconds of a pass, dense to compact, by network and way to run it."""
    networks = _found("latency")
    kinds = sorted({key for entry in networks.values() for key in entry if "batch" in key}, key=_order)
    rows = []
    for kind in kinds:
        cells = [entry.get(kind) for entry in networks.values()]
        rows.append(
            [kind, *(f"{c['dense']:.3g} → {c['compact']:.3g} ms, × {c['speed']:.2f}" if c else "–" for c in cells)]
        )
    return _table(["", *networks], rows)


def _order(kind: str) -> tuple[str, str, int]:
    way, precision, _, batch = kind.split()
    return way, precision, int(batch)


def targets() -> str:
    """What plans to a share of the latency leave when they are measured."""
    rows = []
    for network, entry in _found("latency").items():
        for row in entry.get("targets", ()):
            first = [network, f"{row['target']:g}", str(row["round_to"] or "–"), str(row["seed"])]
            if "refused" in row:
                rows.append([*first, "refused before training", "–", "–"])
            else:
                rows.append([*first, f"{row['planned']:.3f}", f"{row['measured']:.3f}", f"{row['macs']:.3f}"])
    head = ["network", "asked for", "multiples of", "seed", "planned", "measured", "MACs left"]
    return _table(head, rows)


def profile() -> str:
    """Milliseconds by kind of operation."""
    rows = []
    for network, entry in _found("latency").items():
        for which in ("dense", "compact"):
            if "profile" in entry:
                found = dict(entry["profile"][which])
                speed = found.pop("GMAC/s")
                parts = ", ".join(f"{kind} {ms:.3g}" for kind, ms in found.items())
                rows.append([f"{network}, {which}", parts, f"{speed:.3g}"])
    return _table(["network", "ms by operation, 64 images", "GMAC/s of convolutions and linear layers"], rows)


def growth() -> str:
    """Seconds of the analysis by network."""
    networks = _found("growth")
    steps = ["channel groups", "real size", "compact", "plan", "summarize", "pictures"]
    rows = []
    for network, entry in networks.items():
        seconds = [f"{entry['seconds'][step]:.3g}" for step in steps]
        memory = [f"{entry['memory'][kind]:.2f}" for kind in ("guide", "posterior")]
        rows.append([network, f"{entry['params'] / 1e6:.3g} M", f"{entry['units']:,}", *seconds, *memory])
    return _table(["network", "parameters", "channels", *(f"{s}, s" for s in steps), "guide", "posterior"], rows)


def processes() -> str:
    """Seconds of an epoch by processes and threads, and how many times one thread's speed each has."""
    networks = _found("processes")
    rows = []
    for network, entry in networks.items():
        alone, *_ = entry["seconds"].values()
        rows.append([network, *(f"{s:.3g} s, × {alone / s:.2f}" for s in entry["seconds"].values())])
    return _table(["network", *next(iter(networks.values()))["seconds"]], rows)
