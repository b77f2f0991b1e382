"""What the report page says first: whether the target was met, what may be claimed, and the figures that count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyrobnn.pipeline import dense_training
from pyrobnn.report.figures import as_dict, is_number
from pyrobnn.report.wording import DASH, percent, points, removed, scaled, signed, text

Report = Mapping[str, Any]
SIZES = {
    "target_macs": "MACs", "target_params": "parameters", "target_nonzero": "parameters that are not zero",
    "target_latency": "latency (within 5 points)",
}  # fmt: skip


def target_lines(report: Report) -> list[dict[str, str]]:
    """The lines under the title: was the target met, what may be claimed, and on what images it was chosen."""
    lines = []
    target = as_dict(report.get("target"))
    asked = as_dict(target.get("asked")) or {key: target[key] for key in (*SIZES, "max_drop") if key in target}
    wish = "; ".join(_asked(report, key, value) for key, value in asked.items() if is_number(value))
    if target.get("met") is not None:
        met = target["met"] is True
        reached = f" Reached: {_reached(report)}." if _reached(report) else ""
        lines.append(
            {"kind": "good" if met else "bad", "head": "Target met." if met else "Target missed.",
             "text": f"Asked for: {wish or DASH}.{reached}"}
        )  # fmt: skip
    elif wish:
        lines.append({"kind": "plain", "head": "Asked for:", "text": f"{wish}."})
    claim = as_dict(report.get("comparison")).get("claim")
    if claim:
        lines.append({"kind": "plain", "head": "What may be claimed:", "text": text(claim)})
    if (undertrained := dense_training.warning(as_dict(report.get("dense_training")))) is not None:
        lines.append(
            {"kind": "note", "head": "Undertrained.", "text": undertrained[0].upper() + undertrained[1:] + "."}
        )
    if report.get("validation_clean") is False:
        lines.append(
            {"kind": "note", "head": "Biased choices.", "text": "The given weights had already seen the validation "
             "images, so every choice made on validation accuracy is biased. The test figures are not affected."}
        )  # fmt: skip
    return lines


def _asked(report: Report, key: str, value: float) -> str:
    _, metric, _, change = figure(report)
    if key == "max_drop" and change is not points:
        return f"validation {metric} worse by at most {value:g}"
    if key == "max_drop" and metric != "accuracy":
        return f"at most {value:g}\N{NO-BREAK SPACE}points of validation {metric} lost"
    if key == "max_drop":
        unit = "point" if value == 1 else "points"
        return f"at most {value:g}\N{NO-BREAK SPACE}{unit} of validation accuracy lost"
    return f"at most {100 * value:g}\N{NO-BREAK SPACE}% of the {SIZES.get(key, key.replace('_', ' '))} left"


def _reached(report: Report) -> str:
    target = as_dict(report.get("target"))
    reached, interval = target.get("reached"), target.get("interval")
    _, name, _, change = figure(report)
    share = change is points
    unit = "\N{NO-BREAK SPACE}points" if share else f" of {name}"

    def lost(value: float) -> str:
        return f"{value:.2f}" if share else f"{value:.3g}"

    parts = []
    for key, value in as_dict(reached).items():
        if not is_number(value):
            continue
        if key == "max_drop":
            parts.append(f"{lost(value)}{unit} lost")
        else:
            size = SIZES.get(key, key.replace("_", " ")).partition(" (")[0]
            parts.append(f"{100 * value:.1f}\N{NO-BREAK SPACE}% of the {size} left")
    if is_number(reached):
        parts.append(f"{reached:.4g}")
    if parts and isinstance(interval, list | tuple) and len(interval) == 2 and all(map(is_number, interval)):
        parts[-1] += f" (95\N{NO-BREAK SPACE}% interval {lost(interval[0])} to {lost(interval[1])})".replace("-", "−")
    return "; ".join(parts)


def figure(report: Report) -> tuple[str, str, Callable[[float], str], Callable[[float, float], str]]:
    """What the networks are judged by: key, name, how a value is written, how a change is. Accuracy without a word of it."""
    name = as_dict(report.get("dense")).get("metric", "accuracy")
    if name == "accuracy":
        return "accuracy", "accuracy", percent, points
    if as_dict(report.get("comparison")).get("share"):
        return "value", text(name), percent, points
    return "value", text(name), lambda v: f"{v:.4g}", lambda a, b: signed(b - a, 4)


def cards(report: Report) -> list[dict[str, str]]:
    """The figures to see first."""
    dense, compact = as_dict(report.get("dense")), as_dict(report.get("compact"))

    def beside(key: str, show: Callable[[float], str]) -> str:
        return f"; dense {show(dense[key])}" if is_number(dense.get(key)) else ""

    found = []
    key, metric, written, _ = figure(report)
    if is_number(compact.get(key)):
        found.append((written(compact[key]), f"test {metric}{beside(key, written)}"))
    for key, name in (("macs", "MACs"), ("params", "parameters")):
        if is_number(compact.get(key)):
            found.append((removed(report, key), f"{name}; {scaled(compact[key])} left"))
    if is_number(compact.get("latency_ms")):

        def show(value: float) -> str:
            return f"{value:.3g}\N{NO-BREAK SPACE}ms"

        many = compact.get("latency_batch", 1)
        examples = "one example" if many == 1 else f"{many} examples"
        found.append((show(compact["latency_ms"]), f"for {examples}{beside('latency_ms', show)}"))
    if is_number(compact.get("ece")):
        found.append((percent(compact["ece"]), f"calibration error{beside('ece', percent)}"))
    return [{"value": value, "label": label} for value, label in found]
