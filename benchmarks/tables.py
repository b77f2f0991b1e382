"""Write the tables of README.md from `results/*.json` and the method registry."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from pyrobnn.methods.registry import METHODS

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
SCRIPTS = {"gaussian": "gaussian", "ard": "channel_noise", "sbp": "channel_noise", "rbp": "channel_noise"}


def results_table() -> str:
    """One row per name, averaged over its seeds."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((HERE / "results").glob("*-s[0-9]*.json")):
        runs[re.sub(r"-s\d+$", "", path.stem)].append(json.loads(path.read_text()))
    lines = [
        "| network, data | method, asked for | seeds | dense | compact | MACs | parameters | epochs | minutes | file, command |",
        "|---|---|---|---|---|---|---|---|---|---|",
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
            f"−{100 * mean(r['reduction']['params'] for r in reports):.1f} %",
            f"{first['epochs']:g}",
            f"{mean(r['seconds'] for r in reports) / 60:.0f}",
            f"`{name}-s*.json`, `make bench NAME={SCRIPTS.get(first['method'], first['method'])}`",
        ]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


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
    for section, table in (("methods", methods_table()), ("results", results_table())):
        readme = fill(readme, section, table)
    README.write_text(readme, encoding="utf-8")
