"""A run directory: the files in it, how they are written, and how the compact network is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan, resize_to
from pyrobnn.errors import CheckpointError, NetError
from pyrobnn.io.files import is_temporary, sweep, write_json
from pyrobnn.io.lock import LOCK, locked
from pyrobnn.io.manifest import MANIFEST, RunFiles, write_manifest
from pyrobnn.io.sparse import parse_tensors, stated_shapes
from pyrobnn.nets import OnPixels, build_saved, build_spec
from pyrobnn.nets.storage import save_compact
from pyrobnn.nets.weights import save_tensors
from pyrobnn.posterior.bayesian_net import BayesianNet, scale_prefix
from pyrobnn.report.page import standard_figures, write_page
from pyrobnn.report.report import SCHEMA
from pyrobnn.summary.types import Posterior
from pyrobnn.views.netcdf import save_netcdf

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
    classes: Sequence[str] = (),
    bayesian: BayesianNet | None = None,
) -> None:
    """Write all files of a finished run; `report.json` marks a complete one, the manifest of all files comes last."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)  # of a finished run that was taken up again
    save_compact(net, out / COMPACT, mean=mean, std=std, trained_on=report["trained_on"])
    write_json(
        out / COMPACT_JSON,
        {
            "schema": SCHEMA,
            "spec": spec,
            "mean": list(mean),
            "std": list(std),
            "classes": list(classes),
            "widths": report["compact"]["widths"],
        },
    )
    if bayesian is not None:
        save_tensors(bayesian.state(), out / BAYESIAN, data_size=bayesian.model.data_size)
    plan.save(out / PLAN)
    if posterior is not None and posterior.channels:
        save_netcdf(posterior, out / POSTERIOR)
    figures = standard_figures(posterior, report) if posterior is not None else {}
    write_page(out / PAGE, report, figures, load_path=str(out))
    write_json(out / REPORT, report)
    write_manifest(out)


def load_compact(
    path: str | Path, factory: Callable[[], nn.Module] | None = None, *, normalise: bool = False
) -> nn.Module:
    """The compact network of a run directory, in eval mode on the CPU.

    Nothing that the directory names is imported, called or downloaded: only built-in and torchvision networks
    are built from their names. Files are checked against `manifest.json`.

    Args:
        path: the run directory.
        factory: builds the dense network; needed when the run was made from a module of your own.
        normalise: put a :class:`~pyrobnn.nets.Normalise` with the run's mean and standard deviation in front, so that
            the network takes pixels in 0-1, `[N, C, H, W]`; its `classes` are then the names of the outputs, empty
            where the data had none.

    Returns:
        A plain `nn.Module`. Without `normalise` it takes images normalised with the `mean` and `std` in
        `compact.json`.

    Raises:
        CheckpointError: files missing, damaged or edited.
        NetError: the factory builds another kind of network, or is needed and not given.
    """
    with RunFiles(path) as files:
        return build_compact(files, factory, normalise=normalise)


def load_bayesian(path: str | Path, factory: Callable[[], nn.Module] | None = None) -> BayesianNet:
    """The compact network of a run directory with the posterior of its weights, read as :func:`load_compact` does.

    Args:
        path: a run made with `bayesian_epochs`.
        factory: as for :func:`load_compact`.

    Raises:
        CheckpointError: files missing, damaged or edited, or the run has no such posterior.
        NetError: as for :func:`load_compact`.
    """
    with RunFiles(path) as files:
        net = build_compact(files, factory)
        if not files.has(BAYESIAN):
            raise CheckpointError(
                f"{path} holds no posterior of the compact network: add one with --resume --bayesian-epochs N"
            )
        where = files.folder / BAYESIAN
        state, metadata = parse_tensors(files.read(BAYESIAN), where)
    size = metadata.get("data_size", "")
    if not (size.isascii() and size.isdigit() and int(size[:16]) > 0 and len(size) <= 15):
        raise CheckpointError(f"{where} is damaged (no data_size): run pyrobnn compress again")
    own = net.state_dict()
    prefix = scale_prefix(own)
    _check_tensors(state, {**own, **{prefix + name: value for name, value in own.items()}}, where)
    return BayesianNet.from_state(net, state, data_size=int(size))


def build_compact(
    files: RunFiles, factory: Callable[[], nn.Module] | None = None, *, normalise: bool = False
) -> nn.Module:
    """As :func:`load_compact`, from a run directory that is open already."""
    description = read_description(files)
    spec = description.get("spec")
    if factory is not None:
        dense = factory()
        if not isinstance(dense, nn.Module):
            raise NetError(f"factory must return a torch.nn.Module, got {type(dense).__name__}")
    elif spec is not None:
        dense = build_saved(spec)
    else:
        raise NetError(
            f"{files.folder} holds a network of a class of your own: pass factory=, a function that builds the dense "
            "network (on the command line: --model)"
        )
    where, data, expected = files.folder / COMPACT, files.read(COMPACT), dense.state_dict()
    for name, shape in stated_shapes(data, where).items():
        # Before memory of a size that the file states is taken: a compact tensor is never the larger one.
        if name in expected and math.prod(shape) > max(1, expected[name].numel()):
            raise NetError(
                f"{where}: expected {name!r} no larger than {tuple(expected[name].shape)}, got {shape}: the saved "
                "tensors belong to another network"
            )
    tensors, _ = parse_tensors(data, where)
    _check_tensors(tensors, expected, where)
    net = resize_to(dense, tensors).eval()
    if not normalise:
        return net
    return OnPixels(net, description["mean"], description["std"], description.get("classes", ())).eval()


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Types and values of what both know; names and shapes are checked where they are used."""
    for name, value in tensors.items():
        if name in expected and value.dtype != expected[name].dtype:
            raise CheckpointError(
                f"{path}: {name!r} expected {expected[name].dtype}, got {value.dtype}: copy the file again"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {name!r} holds NaN or infinity: the file is damaged, copy it again")


def read_description(files: RunFiles) -> dict[str, Any]:
    """`compact.json`: how to build the network again and how to normalise its images.

    Raises:
        CheckpointError: missing, damaged or edited.
    """
    description, path = files.read_json(COMPACT_JSON), files.folder / COMPACT_JSON
    expected = {"mean": list, "std": list, "widths": dict}
    if not all(isinstance(description.get(key), kind) for key, kind in expected.items()):
        raise CheckpointError(f"{path} is damaged (no mean, std and widths): run pyrobnn compress again")
    mean, std = description["mean"], description["std"]
    numbers = all(type(n) in (int, float) and math.isfinite(n) for n in (*mean, *std))
    if not numbers or len(mean) != len(std) or not all(n > 0 for n in std):
        raise CheckpointError(f"{path} is damaged (mean and std are no finite numbers): run pyrobnn compress again")
    if not all(isinstance(name, str) for name in _listed(description.get("classes", []))):
        raise CheckpointError(f"{path} is damaged (classes are no list of names): run pyrobnn compress again")
    spec = description.get("spec")
    if spec is not None and not isinstance(spec, dict):
        raise CheckpointError(f"{path} is damaged (spec is no object): run pyrobnn compress again")
    return description


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def read_report(files: RunFiles) -> dict[str, Any]:
    """`report.json` of a finished run.

    Raises:
        CheckpointError: missing, damaged or edited.
    """
    report = files.read_json(REPORT)
    expected = {"data": str, "method": str, "dense": dict, "compact": dict, "rounds": list}
    if missing := [key for key, kind in expected.items() if not isinstance(report.get(key), kind)]:
        raise CheckpointError(f"{files.folder / REPORT} is damaged (no {missing[0]!r}): run pyrobnn compress again")
    return report


@contextmanager
def claim(out: Path, *, resume: bool) -> Iterator[None]:
    """Make the output directory and hold it for this process, or say whose it is.

    Temporary files of killed processes go.

    Raises:
        CheckpointError: it is in use, or holds another run, or files of somebody else.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"--out {out} is a file; give a directory")
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        started = (out / CHECKPOINT).exists()
        others = [path for path in out.iterdir() if not is_temporary(path) and path.name != LOCK]
        if not new and others and not (resume and started):
            if resume:
                raise CheckpointError(
                    f"--out {out} holds files but no {CHECKPOINT} to resume from: choose another directory"
                )
            what = "another run" if started or (out / REPORT).exists() else "other files"
            hint = "choose another directory, or continue with --resume" if started else "choose another directory"
            raise CheckpointError(f"--out {out} holds {what}: {hint}")
        sweep(out)
        yield


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
