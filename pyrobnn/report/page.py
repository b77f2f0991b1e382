"""``report.html``: one page that explains a run and needs nothing but itself.

Styles and pictures are inside the file and a content policy forbids any
network access; the page has no scripts. Every text that comes from outside
(names, settings, versions) is escaped.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrobnn.errors import DataError
from pyrobnn.report.figures import as_dict, is_number, standard_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["page", "standard_figures", "write_page"]

DASH = "–"
DPI = 160
CSS = """
:root { color-scheme: light; --ink: #1d2530; --soft: #5b6674; --line: #dfe4ea; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; padding-bottom: .25rem;
     border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 0 0 .5rem; font-weight: 600; }
p { margin: .4rem 0; max-width: 46rem; }
.lead { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem;
         margin: 1.4rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
.warning { border-left: .25rem solid #b34700; background: #fff6ef; padding: .6rem .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.text { text-align: left; overflow-wrap: anywhere; }
.bar { display: inline-block; width: 9rem; height: .7rem; background: #e4e7eb; vertical-align: middle; }
.bar i { display: block; height: 100%; background: #0072b2; }
.figures { display: flex; flex-wrap: wrap; gap: 1.6rem 2rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
img { max-width: 100%; height: auto; display: block; }
pre { background: #f5f7f9; border-radius: .4rem; padding: .8rem 1rem; overflow-x: auto; font-size: .88rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; }
"""


def write_page(
    path: str | os.PathLike[str],
    report: Mapping[str, Any],
    figures: Mapping[str, Figure | bytes] | None = None,
    plan_widths: Mapping[str, tuple[int, int]] | None = None,
    *,
    load_path: str | None = None,
) -> Path:
    """Writes the report of a run as one self-contained HTML page.

    The file is written beside its place and moved there when complete.

    Args:
        path: the file, usually ``report.html`` in the run directory.
        report: the contents of ``report.json``; what is missing shows as a dash.
        figures: pictures by title, as matplotlib figures or as PNG bytes.
        plan_widths: ``{group: (before, after)}``; by default the ``widths`` of the
            dense and the compact net in the report.
        load_path: what the code example loads; by default the folder of `path`.

    Returns:
        The path written.

    Raises:
        DataError: a picture is not a PNG.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    html = page(report, figures, plan_widths, load_path=load_path or str(target.parent))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_text(html, encoding="utf-8")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def page(
    report: Mapping[str, Any],
    figures: Mapping[str, Figure | bytes] | None = None,
    plan_widths: Mapping[str, tuple[int, int]] | None = None,
    *,
    load_path: str = ".",
) -> str:
    """The page of `write_page` as text."""
    dense, compact = as_dict(report.get("dense")), as_dict(report.get("compact"))
    if plan_widths is None:
        old, new = as_dict(dense.get("widths")), as_dict(compact.get("widths"))
        plan_widths = {group: (n, new.get(group, 0)) for group, n in old.items()}
    title = f"{_text(report.get('model'))} on {_text(report.get('data'))}"
    body = [
        f"<h1>{title}, compressed with {_text(report.get('method'))}</h1>",
        _lead(report),
        _cards(report, dense, compact),
        _validation(report),
        _section("Measured on the nets", _numbers(dense, compact)),
        _section("What accuracy does not show", _robustness(as_dict(report.get("robustness")))),
        _section("The posterior of the compact net", _bayesian(as_dict(report.get("bayesian")), compact)),
        _section("What was done", _settings(report)),
        _section("Rounds", _rounds(report.get("rounds") or [])),
        _section("Pictures", _pictures(figures or {})),
        _section("Channels left", _widths(plan_widths)),
        _section("Load the net", _code(load_path)),
        _footer(report),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    return DASH if value is None or value == "" else escape(str(value))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _signed(value: float, digits: int, unit: str = "") -> str:
    text = f"{abs(value):.{digits}f}"
    sign = "" if float(text) == 0 else "−" if value < 0 else "+"
    return f"{sign}{text}{unit}"


def _scaled(value: float) -> str:
    """Large counts as 2.293 M, small ones in full."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g} {letter}"
    return f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _removed(report: Mapping[str, Any], key: str) -> str:
    value = as_dict(report.get("reduction")).get(key, math.nan)
    return _signed(-100 * value, 1, " %") if is_number(value) else DASH


def _lead(report: Mapping[str, Any]) -> str:
    return (
        f'<p class="lead">{_removed(report, "macs")} multiply-accumulates and {_removed(report, "params")} '
        "parameters. Every figure on this page was measured on the compact net itself, whose tensors are "
        "really smaller, and on the dense net beside it.</p>"
    )


def _cards(report: Mapping[str, Any], dense: Mapping[str, Any], compact: Mapping[str, Any]) -> str:
    cards = []
    if is_number(compact.get("accuracy")):
        beside = f"; dense {_percent(dense['accuracy'])}" if is_number(dense.get("accuracy")) else ""
        cards.append((_percent(compact["accuracy"]), f"test accuracy{beside}"))
    cards += [
        (_removed(report, key), f"{name}; {_scaled(compact[key])} left")
        for key, name in (("macs", "MACs"), ("params", "parameters"))
        if is_number(compact.get(key))
    ]
    if is_number(compact.get("ece")):
        beside = f"; dense {_percent(dense['ece'])}" if is_number(dense.get("ece")) else ""
        cards.append((_percent(compact["ece"]), f"calibration error{beside}"))
    cells = "".join(f'<div class="card"><b>{a}</b><span>{b}</span></div>' for a, b in cards)
    return f'<div class="cards">{cells}</div>' if cells else ""


def _validation(report: Mapping[str, Any]) -> str:
    if report.get("validation_clean") is not False:
        return ""
    return (
        '<p class="warning">The given weights had already seen the validation images, so every choice made '
        "on validation accuracy is biased. The test figures are not affected.</p>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text: bool = False) -> str:
    """Cells must be escaped already."""
    kind = ' class="text"' if text else ""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td{kind if i else ''}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<tr>{top}</tr>\n{body}</table></div>'


def _numbers(dense: Mapping[str, Any], compact: Mapping[str, Any]) -> str:
    def relative(a: float, b: float) -> str:
        return _signed(100 * (b / a - 1), 1, " %") if a else DASH

    def points(a: float, b: float) -> str:
        return _signed(100 * (b - a), 2, " points")

    def plain(a: float, b: float) -> str:
        return _signed(b - a, 4)

    lines: list[tuple[str, str, Callable[[float], str], Callable[[float, float], str]]] = [
        ("accuracy", "Test accuracy", _percent, points),
        ("nll", "Negative log-likelihood (nats)", lambda v: f"{v:.4f}", plain),
        ("ece", "Expected calibration error, 15 bins", _percent, points),
        ("brier", "Brier score", lambda v: f"{v:.4f}", plain),
        ("params", "Parameters", lambda v: f"{v:,.0f}", relative),
        ("nonzero_params", "Parameters that are not zero", lambda v: f"{v:,.0f}", relative),
        ("macs", "Multiply-accumulates, one example", lambda v: f"{v:,.0f}", relative),
        ("bytes", "Bytes", lambda v: f"{v:,.0f}", relative),
        ("latency_ms", "Median latency, one example", lambda v: f"{v:.3g} ms", relative),
    ]
    rows = []
    for key, name, show, change in lines:
        a, b = dense.get(key), compact.get(key)
        if is_number(a) or is_number(b):
            both = change(a, b) if is_number(a) and is_number(b) else DASH
            rows.append([name, *(show(v) if is_number(v) else DASH for v in (a, b)), both])
    return _table(["", "dense", "compact", "change"], rows) if rows else ""


def _robustness(found: Mapping[str, Any]) -> str:
    if not is_number(found.get("agreement")):
        return ""
    rows = []
    for row in found.get("noise") or []:
        a, b = row.get("dense"), row.get("compact")
        if is_number(a) and is_number(b):
            change = _signed(100 * (b - a), 2, " points")
            rows.append([f"σ = {_flat(row.get('sigma'))}", _percent(a), _percent(b), change])
    table = _table(["Gaussian pixel noise", "dense", "compact", "change"], rows) if rows else ""
    return (
        f"<p>Dense and compact net name the same class for {_percent(found['agreement'])} of the test images. "
        f"Accuracy under noise, σ in units of the pixel range{_in_precision(found)}:</p>\n{table}"
    )


def _in_precision(found: Mapping[str, Any]) -> str:
    return f", measured in {found['precision']}" if found.get("precision", "fp32") != "fp32" else ""


def _bayesian(found: Mapping[str, Any], compact: Mapping[str, Any]) -> str:
    keys = [key for key in ("accuracy", "nll", "ece") if is_number(found.get(key)) and is_number(compact.get(key))]
    if not keys:
        return ""
    labels = {
        "accuracy": "Test accuracy",
        "nll": "Negative log-likelihood (nats)",
        "ece": "Expected calibration error, 15 bins",
    }
    rows = []
    for key in keys:
        show = (lambda v: f"{v:.4f}") if key == "nll" else _percent
        rows.append([labels[key], show(compact[key]), show(found[key])])
    return (
        f"<p>A Gaussian per weight, fitted around the compact net at KL weight {_flat(found.get('kl_weight'))}; "
        f"predictions average {_flat(found.get('draws'))} draws.</p>\n"
        + _table(["", "weights at their values", "averaged over the posterior"], rows)
    )


def _flat(value: Any) -> str:
    """A setting as text: dictionaries as “a 1, b 2”, floats short."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_text(k)} {_flat(v)}" for k, v in value.items() if v is not None) or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_flat(v) for v in value) or DASH
    return _text(value)


def _settings(report: Mapping[str, Any]) -> str:
    names = {
        "method": "Method",
        "model": "Net",
        "data": "Data",
        "rule": "Cut rule",
        "target": "Target",
        "seed": "Seed",
        "epochs": "Epochs in all",
        "epochs_by_phase": "Epochs by phase",
        "seconds": "Seconds",
        "precision": "Precision",
        "device": "Device",
        "validation_clean": "Validation images unseen",
    }
    rows = [[label, _flat(report[key])] for key, label in names.items() if report.get(key) is not None]
    return _table(["", ""], rows, text=True).replace("<tr><th></th><th></th></tr>\n", "") if rows else ""


def _rounds(rounds: Sequence[Any]) -> str:
    entries = [r for r in rounds if isinstance(r, Mapping)]
    keys = list(dict.fromkeys(k for r in entries for k, v in r.items() if isinstance(v, str | int | float)))
    if not keys:
        return ""

    def cell(key: str, value: Any) -> str:
        if is_number(value) and "accuracy" in key:
            return _percent(value)
        return f"{value:,}" if is_number(value) and isinstance(value, int) else _flat(value)

    keys = [key for key in keys if key != "round"]
    rows = [
        [_flat(r.get("round", i)), *(cell(key, r.get(key)) for key in keys)] for i, r in enumerate(entries, start=1)
    ]
    heads = [escape(str(key)).replace("_", " ").replace("macs", "MACs") for key in keys]
    return _table(["round", *heads], rows)


def _pictures(figures: Mapping[str, Figure | bytes]) -> str:
    parts = []
    for title, figure in figures.items():
        data, width = _png(title, figure)
        source = base64.b64encode(data).decode("ascii")
        size = f' width="{width}"' if width else ""
        parts.append(
            f'<figure><h3>{_text(title)}</h3><img alt="{_text(title)}"{size} '
            f'src="data:image/png;base64,{source}"></figure>'
        )
    return f'<div class="figures">\n{chr(10).join(parts)}\n</div>' if parts else ""


def _png(title: str, figure: Figure | bytes) -> tuple[bytes, int | None]:
    """PNG data and, for a figure, its width in CSS pixels (sharp on dense screens)."""
    if isinstance(figure, bytes):
        if not figure.startswith(b"\x89PNG\r\n\x1a\n"):
            raise DataError(f"expected PNG bytes for {title!r}, got something else; pass a matplotlib figure")
        return figure, None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue(), round(96 * figure.get_figwidth())


def _widths(widths: Mapping[str, tuple[int, int]]) -> str:
    rows = [
        [
            _text(group),
            str(int(before)),
            str(int(after)),
            f'<span class="bar"><i style="width:{100 * min(after / max(before, 1), 1):.1f}%"></i></span>',
        ]
        for group, (before, after) in widths.items()
    ]
    return _table(["channel group", "dense", "compact", "left"], rows) if rows else ""


def _code(load_path: str) -> str:
    lines = [
        "import pyrobnn as pb",
        "",
        f"net = pb.load_compact({load_path!r})    # a plain nn.Module with the smaller tensors",
        "net.eval()",
        "",
        "import arviz as az",
        "",
        f"posterior = az.from_netcdf({str(Path(load_path) / 'posterior.nc')!r})",
    ]
    code = escape("\n".join(lines))
    return f"<pre><code>{code}</code></pre>\n<p>For a class of your own: <code>factory=MyNet</code>.</p>"


def _footer(report: Mapping[str, Any]) -> str:
    schema, versions = _text(report.get("schema")), _flat(as_dict(report.get("versions")))
    return f"<footer>Made by pyrobnn; report schema {schema}; versions: {versions}</footer>"
