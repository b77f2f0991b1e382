"""`load_run`: reads a finished run from its directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pyrobnn.channels import PruningPlan
from pyrobnn.compression.store import PLAN, POSTERIOR, build_compact, read_report
from pyrobnn.errors import NetError
from pyrobnn.io.manifest import RunFiles
from pyrobnn.summary.netcdf import read_posterior
from pyrobnn.summary.types import Posterior


@dataclass(frozen=True)
class FinishedRun:
    """What a run directory holds.

    Attributes:
        compact: the compact network, in eval mode on the CPU; None for a network of your own without a `factory`.
        posterior: site and channel summaries and draws, as far as `posterior.nc` has them; empty for controls.
        plan: kept units per group, in the coordinates of the dense network.
        report: the content of `report.json`.
    """

    compact: nn.Module | None
    posterior: Posterior
    plan: PruningPlan
    report: dict[str, Any]


def load_run(path: str | Path, factory: Callable[[], nn.Module] | None = None) -> FinishedRun:
    """Read a finished run back: network, posterior, plan and report.

    Nothing that the directory names is imported, called or downloaded, and files are checked against
    `manifest.json`, as in :func:`~pyrobnn.load_compact`. No checkpoint is needed.

    Args:
        path: the run directory.
        factory: builds the dense network, for a run that was made from a module of your own.

    Raises:
        CheckpointError: files missing, damaged or edited.
        NetError: the factory builds another kind of network.
        PlanError: `plan.json` holds no plan.
    """
    with RunFiles(path) as files:
        report = read_report(files)
        plan = PruningPlan.from_json(files.read(PLAN).decode())
        posterior = Posterior({}, {})
        if files.has(POSTERIOR):
            posterior = read_posterior(files.read(POSTERIOR), files.folder / POSTERIOR)
        try:
            compact = build_compact(files, factory)
        except NetError:
            if factory is not None:
                raise
            compact = None
    return FinishedRun(compact, posterior, plan, report)
