"""A run directory: what is in it, how it is written, and how the compact network comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyrobnn.channels import PruningPlan, resize_to
from pyrobnn.errors import CheckpointError, NetError
from pyrobnn.nets import build_spec, read_weights
from pyrobnn.nets.storage import save_compact
from pyrobnn.nets.weights import save_tensors
from pyrobnn.posterior.bayesian_net import BayesianNet
from pyrobnn.report.page import standard_figures, write_page
from pyrobnn.report.report import SCHEMA, read_json, write_json
from pyrobnn.summary.types import Posterior
from pyrobnn.views.arviz import save_netcdf

COMPACT = "compact.safetensors"
COMPACT_JSON = "compact.json"
REPORT = "report.json"
BAYESIAN = "bayesian.safetensors"
PLAN = "plan.json"
CHECKPOINT = "checkpoint.pt"
DENSE = "dense.safetensors"
POSTERIOR = "posterior.nc"
PAGE = "report.html"


def write_run(
    out: Path,
    *,
    net: nn.Module,
    spec: dict[str, Any] | None,
    plan: PruningPlan,
    posterior: Posterior | None,
    report: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    bayesian: BayesianNet | None = None,
) -> None:
    """Write all files of a finished run; `report.json` comes last, so it marks a complete run."""
    out.mkdir(parents=True, exist_ok=True)
    save_compact(net, out / COMPACT, mean=mean, std=std, trained_on=report["trained_on"])
    write_json(
        out / COMPACT_JSON,
        {"schema": SCHEMA, "spec": spec, "mean": list(mean), "std": list(std), "widths": report["compact"]["widths"]},
    )
    if bayesian is not None:
        save_tensors(bayesian.state(), out / BAYESIAN, data_size=bayesian.model.data_size)
    plan.save(out / PLAN)
    if posterior is not None and posterior.channels:
        save_netcdf(posterior, out / POSTERIOR)
    figures = standard_figures(posterior, report) if posterior is not None else {}
    write_page(out / PAGE, report, figures, load_path=out.name)
    write_json(out / REPORT, report)


def load_compact(path: str | Path, factory: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The compact network of a run directory, in eval mode on the CPU, without pickle.

    Args:
        path: the run directory.
        factory: builds the dense network; needed when the run was made from a module of your own.

    Returns:
        A plain `nn.Module`. It takes images normalised with the `mean` and `std` in `compact.json`.

    Raises:
        CheckpointError: files missing or damaged.
        NetError: the factory builds another kind of network, or is needed and not given.
    """
    path = Path(path)
    description = read_description(path)
    tensors, _ = read_weights(path / COMPACT)
    spec = description.get("spec")
    if factory is not None:
        dense = factory()
    elif spec is not None:
        dense = build_spec(spec)
    else:
        raise NetError(
            f"{path} holds a network of a class of your own: pass factory=, a function that builds the dense network"
        )
    return resize_to(dense, tensors).eval()


def load_bayesian(path: str | Path, factory: Callable[[], nn.Module] | None = None) -> BayesianNet:
    """The compact network of a run directory with the posterior of its weights, without pickle.

    Args:
        path: a run made with `bayesian_epochs`.
        factory: as for :func:`load_compact`.

    Raises:
        CheckpointError: files missing or damaged, or the run has no such posterior.
        NetError: as for :func:`load_compact`.
    """
    path = Path(path)
    net = load_compact(path, factory)
    if not (path / BAYESIAN).is_file():
        raise CheckpointError(
            f"{path} holds no posterior of the compact network: add one with --resume --bayesian-epochs N"
        )
    state, metadata = read_weights(path / BAYESIAN)
    size = metadata.get("data_size", "")
    if not size.isdigit():
        raise CheckpointError(f"{path / BAYESIAN} is damaged (no data_size): run pyrobnn compress again")
    return BayesianNet.from_state(net, state, data_size=int(size))


def read_description(path: Path) -> dict[str, Any]:
    """`compact.json`: how to build the network again and how to normalise its images.

    Raises:
        CheckpointError: missing or damaged.
    """
    description = read_json(path / COMPACT_JSON)
    expected = {"mean": list, "std": list, "widths": dict}
    if not all(isinstance(description.get(key), kind) for key, kind in expected.items()):
        raise CheckpointError(f"{path / COMPACT_JSON} is damaged (no mean, std and widths): run pyrobnn compress again")
    spec = description.get("spec")
    if spec is not None and not isinstance(spec, dict):
        raise CheckpointError(f"{path / COMPACT_JSON} is damaged (spec is no object): run pyrobnn compress again")
    return description


def read_report(path: Path) -> dict[str, Any]:
    """`report.json` of a finished run.

    Raises:
        CheckpointError: missing or damaged.
    """
    report = read_json(path / REPORT)
    expected = {"data": str, "method": str, "dense": dict, "compact": dict, "rounds": list}
    if missing := [key for key, kind in expected.items() if not isinstance(report.get(key), kind)]:
        raise CheckpointError(f"{path / REPORT} is damaged (no {missing[0]!r}): run pyrobnn compress again")
    return report


def claim(out: Path, *, resume: bool) -> None:
    """Make the output directory, or say whose it is.

    Raises:
        CheckpointError: it holds another run, or files of somebody else.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"--out {out} is a file; give a directory")
    started = (out / CHECKPOINT).exists()
    # A run that was killed before its first checkpoint may have left half of one.
    others = [path for path in out.iterdir() if path.name != f"{CHECKPOINT}.tmp"] if out.exists() else []
    if others and not (resume and started):
        if resume:
            raise CheckpointError(f"--out {out} holds files but no {CHECKPOINT} to resume from: choose another directory")
        what = "another run" if started or (out / REPORT).exists() else "other files"
        hint = "choose another directory, or continue with --resume" if started else "choose another directory"
        raise CheckpointError(f"--out {out} holds {what}: {hint}")
    out.mkdir(parents=True, exist_ok=True)


def find_spec(net: nn.Module, sizes: dict[str, int]) -> dict[str, Any] | None:
    """The built-in network that `net` is, by class and tensor shapes, or None."""
    from pyrobnn.nets import BUILT_IN, net_spec

    shapes = {name: value.shape for name, value in net.state_dict().items()}
    for name in BUILT_IN:
        try:
            spec = net_spec(name, **sizes)
            with torch.device("meta"):
                twin = build_spec(spec)
        except (NetError, RuntimeError, CheckpointError):
            continue
        if type(twin) is type(net) and {n: v.shape for n, v in twin.state_dict().items()} == shapes:
            return dict(spec)
    return None
