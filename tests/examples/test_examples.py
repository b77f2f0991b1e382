"""Every example runs as it stands, with stock Pyro, and ends in a smaller network that still knows its digits."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "common.py")


def test_there_is_one_for_every_prior_family() -> None:
    families = {"gaussian.py", "spike_slab.py", "turbo.py", "dropout_noise.py", "ard.py", "your_own.py"}
    assert families <= set(SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_example(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    found = runpy.run_path(str(EXAMPLES / script))["main"]()
    assert found["dense"] > 0.95 and found["compact"] > 0.94
    assert found["left"] < 0.75
    assert "accuracy" in capsys.readouterr().out
