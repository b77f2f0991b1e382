"""``report.html``: one self-contained page about a run.

Styles, pictures and the one script (copy buttons) are inside the file, and a content policy forbids everything else.
Every text that comes from outside (names, settings, versions) is escaped by the template. What the page says is put
together in :mod:`~pyrobnn.report.sections`; how it looks is in ``templates/``.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrobnn.errors import DataError
from pyrobnn.io.files import write_text
from pyrobnn.report import headline, sections, wording
from pyrobnn.report.figures import as_dict, caption, standard_figures

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

__all__ = ["page", "standard_figures", "write_page"]

DPI = 160


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
    html = page(report, figures, plan_widths, load_path=load_path or str(target.parent))
    return write_text(target, html)


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
    environment = _environment()
    script = _source(environment, "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    pictures = [_picture(title, figure) for title, figure in (figures or {}).items()]
    return environment.get_template("page.html").render(
        title=f"{wording.text(report.get('model'))} on {wording.text(report.get('data'))}",
        method=wording.text(report.get("method")),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=_source(environment, "page.css"),
        script=script,
        removed={key: wording.removed(report, key) for key in ("macs", "params")},
        target_lines=headline.target_lines(report),
        cards=headline.cards(report),
        sections=sections.all_sections(report, pictures, plan_widths, load_path),
        schema=wording.text(report.get("schema")),
        versions=wording.flat(as_dict(report.get("versions"))),
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("pyrobnn.report", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _picture(title: str, figure: Figure | bytes) -> dict[str, Any]:
    """A picture for the template: base64 of a PNG and, for a figure, its width in CSS pixels (sharp on dense screens)."""
    width = None
    if isinstance(figure, bytes):
        if not figure.startswith(b"\x89PNG\r\n\x1a\n"):
            raise DataError(f"expected PNG bytes for {title!r}, got something else; pass a matplotlib figure")
        data = figure
    else:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
        data, width = buffer.getvalue(), round(96 * figure.get_figwidth())
    return {"title": title, "caption": caption(title), "data": base64.b64encode(data).decode("ascii"), "width": width}
