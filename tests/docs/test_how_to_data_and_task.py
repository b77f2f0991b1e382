"""The code of the how-to pages on data and tasks runs, block after block, as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"


@pytest.mark.parametrize("page", ["data.md", pytest.param("task.md", marks=pytest.mark.slow)])
def test_page(page: str) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", (PAGES / page).read_text(encoding="utf-8"), re.M | re.S))
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, page, "exec"), names)
    if page == "data.md":
        assert "2 inputs" in names["data"].describe()
    else:
        assert names["result"].report["compact"]["metric"] == "RMSE"
