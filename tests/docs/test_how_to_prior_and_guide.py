"""The code of the how-to pages on priors and guides runs, block after block, as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"


def blocks(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", (PAGES / page).read_text(), re.M | re.S))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["prior.md", "guide.md"])
def test_page(page: str) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(blocks(page), page, "exec"), names)
    if page == "prior.md":
        assert names["posterior"].channels["0"].statistic == "snr"
    else:
        assert names["inference_data"]["log_likelihood"] is not None
        assert names["smaller"][0].groups.widths() == {"0": 2}
