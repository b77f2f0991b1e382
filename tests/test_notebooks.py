"""Every notebook runs from top to bottom, with few epochs, in a temporary copy; and what is committed has its outputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra [notebooks]")
pytest.importorskip("nbclient", reason="needs the extra [notebooks]")
pytest.importorskip("ipykernel", reason="needs the extra [notebooks]")

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))

# In a process of its own: kernel and sockets end with it.
EXECUTE = """
import sys, nbformat, nbclient
book = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(book, timeout=250, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
nbformat.write(book, sys.argv[1])
"""


def code_cells(path: Path) -> list[Any]:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_they_are_numbered() -> None:
    assert [name[:2] for name in NAMES] == [f"{number:02}" for number in range(1, len(NAMES) + 1)] and len(NAMES) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    shutil.copyfile(FOLDER / name, tmp_path / name)
    book = nbformat.read(tmp_path / name, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            for full, short in cell.metadata.get("smoke", {}).items():  # few epochs, out of the reader's sight
                assert cell.source.count(full) == 1, full
                cell.source = cell.source.replace(full, short)
    nbformat.write(book, tmp_path / name)
    private = {key: str(tmp_path / key.lower()) for key in ("IPYTHONDIR", "MPLCONFIGDIR", "JUPYTER_RUNTIME_DIR")}
    environment = {**os.environ, **private, "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)  # the kernel's own, or there are no pictures
    command = [sys.executable, "-W", "ignore", "-c", EXECUTE, name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = code_cells(tmp_path / name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_committed_with_the_outputs_of_a_full_run(name: str) -> None:
    cells = code_cells(FOLDER / name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    text = "".join(output.get("text", "") for output in outputs)
    assert not any(place in text for place in ("/home/", "/root/", "/tmp/", "/Users/"))
