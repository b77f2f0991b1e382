"""The report page in a real browser: no console message, nothing wider than the window, in both colour schemes."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from pyrobnn.report import page as pages

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the PATH")

# Old browsers do not make windows as narrow as a telephone: the page is measured inside a frame of that width.
FRAME = """<!doctype html><body style="margin:0"><iframe id="f" style="border:0;width:{width}px;height:3000px"
srcdoc="{page}"></iframe><script>
document.getElementById("f").addEventListener("load", () => {{
  const inside = document.getElementById("f").contentDocument, root = inside.documentElement;
  const found = {{scroll: root.scrollWidth, client: root.clientWidth, buttons: inside.querySelectorAll("pre + button").length,
    paper: getComputedStyle(inside.body).backgroundColor, ink: getComputedStyle(inside.body).color}};
  document.title = JSON.stringify(found);
}});
</script></body>"""


@functools.cache
def full_page() -> str:
    """A page with every section, long names and wide tables."""
    net = {
        "accuracy": 0.9947, "nll": 0.0171, "ece": 0.0021, "params": 431_080, "nonzero_params": 431_080, "macs": 2_293_000,
        "bytes": 1_724_320, "latency_ms": 0.42, "widths": {f"features.{i}.block.conv": 512 for i in range(12)},
    }  # fmt: skip
    rounds = [
        {
            "round": i,
            "params": 90_000,
            "macs": 1_000_000,
            "valid_accuracy": 0.98,
            "threshold": 0.123456789,
            "drop": 0.01,
        }
        for i in range(1, 9)
    ]
    report: dict[str, Any] = {
        "schema": 1, "method": "self-compression-snr", "model": "package.with.a.long.name:factory_of_networks",
        "data": "/a/long/path/without/any/space/in/it/that/would/otherwise/be/wider/than/a/telephone.npz", "seed": 3,
        "rule": "budget", "validation_clean": False, "epochs": 24, "epochs_by_phase": {"dense": 6, "infer": 9, "tune": 9},
        "target": {"target_macs": 0.07, "met": False, "reached": {"target_macs": 0.09}}, "seconds": 81.25,
        "precision": "bf16", "device": "cpu", "versions": {"torch": "2.14.1+cpu.with.a.long.local.version.label"},
        "dense": net, "compact": net | {"accuracy": 0.9930}, "reduction": {"params": 0.99, "macs": 0.9337},
        "validation": {"dense": 0.99, "compact": 0.985}, "rounds": rounds, "settings": dict.fromkeys("abcdefgh", 0.123456),
        "comparison": {"claim": "no difference was found", "interval": [-0.004, 0.001], "p_value": 0.21},
        "per_class": [{"class": f"class {i}", "images": 100, "dense": 0.9, "compact": 0.8} for i in range(10)],
        "robustness": {"agreement": 0.99, "noise": [{"sigma": 0.1, "dense": 0.9, "compact": 0.8}]},
        "bayesian": {"accuracy": 0.99, "nll": 0.01, "ece": 0.01, "kl_weight": 0.1, "draws": 50},
        "refused": {"head": "reaches the network's output"},
    }  # fmt: skip
    wide = Figure(figsize=(11, 4))
    wide.add_subplot().plot(torch.linspace(0, 1, 50).tolist())
    return pages.page(report, {"What the cut was read from": wide, "First filters": wide}, load_path="runs/a" * 20)


@pytest.mark.parametrize("width", [480, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_the_window_without_a_console_message(width: int, scheme: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    document = tmp_path / "frame.html"
    document.write_text(FRAME.format(width=width, page=html.escape(full_page())), encoding="utf-8")
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        "--window-size=1400,3000", "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", document.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    found = json.loads(html.unescape(title[1]))
    assert "CONSOLE" not in done.stderr
    assert found["scroll"] <= found["client"] <= width  # less by a scroll bar
    assert found["buttons"] == 2  # the script ran: one for each block of code
    dark = sum(map(int, re.findall(r"\d+", found["paper"])[:3])) < 3 * 64
    assert dark == (scheme == "dark") and found["paper"] != found["ink"]
