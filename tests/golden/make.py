"""Reports of seeded runs, without what a clock or a version decides: what a change of structure must leave as it is.

`python tests/golden/make.py` writes them anew; do that in a commit of its own when a change of the figures is meant.
Floating-point sums depend on the processor, so `machine.json` says where the files were made.
"""

from __future__ import annotations

import json
import platform
import warnings
from pathlib import Path
from typing import Any

import torch

import pyrobnn as pb
from pyrobnn.report.report import steady

HERE = Path(__file__).parent
METHODS = ("ard", "rbp", "hbfp", "turbo-vbi", "self-compression")
CASES: dict[str, dict[str, Any]] = {
    **{method: {"method": method, "max_drop": 1.0, "epochs": 24} for method in METHODS},
    **{f"{method}-budget": {"method": method, "target_macs": 0.3, "epochs": 16} for method in METHODS},
}


def machine() -> dict[str, str]:
    """What the last bits of a figure depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
        processor = ", ".join(said[key] for key in ("model name", "cpu family", "model", "stepping"))
    except (OSError, KeyError):
        processor = platform.processor()
    return {"processor": processor, "torch": torch.__version__, "kernels": torch.backends.cpu.get_cpu_capability()}


def made(name: str) -> Any:
    """The report of one case, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = pb.compress(
                "small_cnn", "digits", seed=0, precision="fp32", device="cpu", progress=False, **CASES[name]
            )
    finally:
        torch.set_num_threads(threads)
    return steady(result.report)


def kept(name: str) -> Any:
    """What was written for a case."""
    return json.loads((HERE / f"{name}.json").read_text())


if __name__ == "__main__":
    (HERE / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    for case in CASES:
        (HERE / f"{case}.json").write_text(json.dumps(made(case), indent=1, sort_keys=True) + "\n")
        print(case, flush=True)
