"""The script of the how-to page on several devices runs in two processes, as it stands."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "devices.md"


def script(folder: Path) -> tuple[int, list[str]]:
    os.chdir(folder)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S))
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, PAGE.name, "exec"), names)
    return names["result"].report["processes"], sorted(path.name for path in (folder / "runs" / "two").iterdir())


@pytest.mark.slow
def test_page(tmp_path: Path, in_processes: Callable[..., list[Any]]) -> None:
    one, two = in_processes(2, script, tmp_path)
    assert one == two and one[0] == 2 and "report.json" in one[1]
