"""README and documentation: short, true, and made from the result files."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import pytest
import torch

import pyrobnn as pb
from pyrobnn.methods.registry import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if "." not in name and (ROOT / "benchmarks" / f"{name}.py").is_file():
            del sys.modules[name]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_readme_has_what_it_points_to() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_code_of_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    first, second = blocks(README)
    assert len([line for line in first.splitlines() if line.strip()]) <= 9
    exec(compile(first, "README.md", "exec"), scope)
    assert scope["removed"]["macs"] > 0.55
    assert scope["smaller"](scope["data"].example).shape == (len(scope["data"].example), 10)
    exec(compile(second, "README.md", "exec"), scope)
    assert scope["posterior"].convergence.settled
    assert isinstance(scope["small"], torch.nn.Module)
    assert sum(p.numel() for p in scope["small"].parameters()) < sum(p.numel() for p in scope["net"].parameters())
    matplotlib.pyplot.close("all")


def test_tables_are_made_from_the_result_files(script: Callable[[str], Any]) -> None:
    tables = script("tables")
    pages = tables.pages()
    assert ROOT / "README.md" in pages and len(pages) > 8
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text) == text, f"{page.relative_to(ROOT)}: run python benchmarks/tables.py"


def test_files_that_sum_up_others_are_not_older(script: Callable[[str], Any]) -> None:
    results = ROOT / "benchmarks" / "results"
    assert script("recipes").summary() == json.loads((results / "recipes.json").read_text()), "run recipes.py summary"
    assert script("scaling").ratios().items() <= json.loads((results / "scaling.json").read_text()).items(), (
        "run scaling.py"
    )


WITH_CODE = [
    p.relative_to(ROOT) for p in sorted((ROOT / "docs").rglob("*.md")) if blocks(p.read_text(encoding="utf-8"))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=str)
def test_the_code_of_a_page_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "page"}
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), scope)
    matplotlib.pyplot.close("all")


def test_every_method_has_a_page() -> None:
    pages = [p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "methods").glob("*.md") if p.name != "index.md"]
    missing = [name for name in METHODS if not any(f"`{name}`" in text for text in pages)]
    assert not missing, "docs/methods has no page for these"


def test_every_public_name_has_an_entry() -> None:
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").glob("*.md"))
    entries = set(re.findall(r"^::: pyrobnn\.(\w+)$", text, flags=re.MULTILINE))
    errors = {name for name in pb.__all__ if hasattr(pb.errors, name)}  # on the page of pyrobnn.errors
    described = {"data", "nets", "errors"}  # by their functions, and by that page
    assert set(pb.__all__) - errors - described <= entries
