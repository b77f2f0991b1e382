"""Means, correlations and paired tests over the cells of `criteria.py`."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

RESULTS = Path(__file__).parent / "results" / "criteria"
SHARES = (0.8, 0.6, 0.3, 0.1)
FIGURES = ("accuracy", "nll", "agreement")
POSTERIORS = ("laplace", "ard", "ss-gl", "gaussian", "turbo-vbi")  # each is tested against all controls
PAIRED = ("l1", "taylor", "laplace", "ard", "ss-gl")  # of the two-way table
CONTROLS = ("l1", "taylor", "group-fisher", "bn-scale", "fpgm", "random")

Values = dict[str, dict[int, float]]  # by criterion and seed


def read(name: str) -> Any:
    """A cell; None where it is not there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def finished() -> dict[str, list[dict[str, Any]]]:
    """All cells with a criterion, by network."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(RESULTS.glob("*-s[0-9]*.json")):
        cell = json.loads(path.read_text())
        if "criterion" in cell:
            found[cell["network"]].append(cell)
    return found


def correlation(costs: dict[str, list[float]], oracle: dict[str, list[float]]) -> float:
    """Spearman's over all units that the oracle has removed, as a budget without prices would compare them."""
    names = [name for name in oracle if name in costs]
    ours = np.concatenate([costs[name] for name in names])
    theirs = np.concatenate([oracle[name] for name in names])
    there = np.isfinite(theirs)
    return float(stats.spearmanr(ours[there], theirs[there]).statistic)


def holm(pvalues: dict[str, float]) -> dict[str, float]:
    """Holm's step-down correction.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    found, worst = {}, 0.0
    for rank, (name, value) in enumerate(sorted(pvalues.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, value * (len(pvalues) - rank)))
        found[name] = worst
    return found


def tests(values: Values, ours: str) -> dict[str, Any]:
    """Paired t-tests of a criterion against the controls, over the seeds that both have, with Holm's correction."""
    raw, gain = {}, {}
    for name in CONTROLS:
        seeds = sorted(values.get(ours, {}).keys() & values.get(name, {}).keys())
        differences = [values[ours][s] - values[name][s] for s in seeds]
        if len(seeds) > 2 and np.std(differences) > 0:
            raw[name] = float(stats.ttest_1samp(differences, 0.0).pvalue)
            gain[name] = float(np.mean(differences))
    return {name: {"gain": round(gain[name], 3), "p": float(f"{p:.2g}")} for name, p in holm(raw).items()}


def summary() -> dict[str, Any]:
    """By network: figures of every criterion without and with tuning, tests, two-way tables."""
    return {network: _network(network, cells) for network, cells in finished().items()}


def _network(network: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    oracle = read(f"oracle-{network}")
    found: dict[str, Any] = {"untuned": {}, "given": {}, "tuned": {}, "tests": {}, "moved": {}}
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    table: dict[str, Values] = defaultdict(lambda: defaultdict(dict))  # setting → criterion → seed → accuracy
    tuned: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell["tuning_epochs"] == 0:
            rows[cell["criterion"]].append(cell)
            for share, cut in cell.get("given_cuts", cell["cuts"]).items():
                table[f"0 epochs at {share}"][cell["criterion"]][cell["seed"]] = cut["accuracy"]
        else:
            setting = f"{cell['tuning_epochs']:g} epochs at {cell['share']}"
            tuned[setting][cell["criterion"]].append(cell)
            table[setting][cell["criterion"]][cell["seed"]] = cell["accuracy"]
    for name, own in rows.items():
        part: dict[str, Any] = {"seeds": len(own), "cpu_seconds": _mean(c["cpu_seconds"] for c in own)}
        if oracle is not None:
            part["oracle_correlation"] = _mean(correlation(c["costs"], oracle) for c in own)
        for which, into in (("cuts", found["untuned"]), ("given_cuts", found["given"])):
            if which in own[0]:
                figures = {s: {f: _mean(c[which][s][f] for c in own) for f in FIGURES} for s in own[0][which]}
                into[name] = {**part, "shares": figures}
        if "moved" in own[0]:
            keys = [key for key, value in own[0]["moved"].items() if value is not None]
            found["moved"][name] = {"seeds": len(own), **{key: _mean(c["moved"][key] for c in own) for key in keys}}
    for setting, criteria in tuned.items():
        found["tuned"][setting] = {
            name: {"seeds": len(own), **{f: _mean(c[f] for c in own) for f in FIGURES}}
            for name, own in criteria.items()
        }
    for setting, values in table.items():
        found["tests"][setting] = {ours: result for ours in POSTERIORS if (result := tests(values, ours))}
    two_way: dict[str, list[float]] = defaultdict(list)
    for path in sorted(RESULTS.glob(f"twoway-{network}-s*.json")):
        for key, value in json.loads(path.read_text())["accuracy"].items():
            two_way[key].append(value)
    found["two_way"] = {key: {"seeds": len(v), "accuracy": _mean(v)} for key, v in two_way.items()}
    return found


def _mean(values: Any) -> float:
    return round(float(np.mean(list(values))), 4)
