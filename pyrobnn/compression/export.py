"""Exports a network as ONNX or as a `torch.export` program, neither of which needs pyrobnn.

BatchNorm layers are folded into the convolutions before them, the batch size is free, and what is written
has first been loaded again from its bytes and compared with the network on the given images.
"""

from __future__ import annotations

import copy
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyrobnn.errors import ConfigError, NetError
from pyrobnn.inference.folding import folded
from pyrobnn.io.files import first_line, write_bytes
from pyrobnn.nets import Normalise, OnPixels, check_precision

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18  # the oldest that torch's exporter writes without converting; ONNX Runtime 1.14 and later run it
TOLERANCE = 1e-4  # of the largest output

Call = Callable[[tuple[Tensor, ...]], list[Tensor]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        format: `onnx` or `torch`.
        bytes: its size.
        latency_ms: median time of one image, run from the file (by ONNX Runtime or torch, on the CPU).
        difference: largest difference from the network on the images given, as a fraction of its largest output.
        opset: of an ONNX file, else None.
    """

    path: Path
    format: str
    bytes: int
    latency_ms: float
    difference: float
    opset: int | None

    def __str__(self) -> str:
        kind = f"ONNX, opset {self.opset}" if self.opset else "torch.export"
        return (
            f"{self.path}: {kind}, {self.bytes:,} bytes, {self.latency_ms:.2f} ms an image, "
            f"within {self.difference:.0e} of the network"
        )


def export(
    net: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: str | Path,
    *,
    format: str | None = None,
    normalise: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Exported:
    """Write a network for use without pyrobnn.

    Args:
        net: any network, such as `result.compact`; it is copied, put into eval mode and on the CPU.
        example: images `[N, C, H, W]` as the network takes them (or all inputs), real ones where there are some, on
            which the file is tried.
        path: target file.
        format: `onnx` (needs the extra `export`) or `torch` (`torch.export.load(path).module()` opens it); by
            default from the suffix of `path`, `.onnx` or `.pt2`.
        normalise: mean and standard deviation per channel to be put in front, so that the file takes pixels in 0-1.

    Returns:
        What was written, with its size and latency; `print` shows it in a line.

    Raises:
        ConfigError: an unknown format, or a library that is missing.
        NetError: the network cannot be exported, or what came out differs from it. Nothing is written then.
    """
    target = Path(path)
    kind = format or next((kind for kind, suffix in FORMATS.items() if target.suffix == suffix), None)
    if kind not in FORMATS:
        raise ConfigError(
            f"--format must be onnx or torch (or {path} end in .onnx or .pt2), got {format or target.suffix!r}"
        )
    given = tuple(value.detach().cpu() for value in (example if isinstance(example, tuple) else (example,)))
    if not given or not len(given[0]):
        raise ConfigError("export tries the file on images: expected at least one, got none")
    plain = copy.deepcopy(net).cpu().eval().requires_grad_(False)
    check_precision(plain, given)
    with torch.no_grad():
        expected = _tensors(plain(*given))
    if normalise is not None:
        if len(given) != 1:
            raise ConfigError(f"normalise is for networks with one input, this one has {len(given)}: leave it out")
        step = Normalise(*normalise)
        plain = OnPixels(plain, *normalise).eval().requires_grad_(False)
        given = (given[0] * step.std + step.mean,)
    small = folded(plain, given[0]) if len(given) == 1 else plain
    content, run = (_onnx if kind == "onnx" else _torch)(small, given)
    difference = max(_differences(expected, run(given)), _differences([e[:1] for e in expected], run(_first(given))))
    if not difference <= TOLERANCE:
        raise NetError(
            f"{type(net).__name__} as {kind} differs from the network by {difference:.1e} of its largest output "
            f"(at most {TOLERANCE:g} is taken): nothing was written"
        )
    write_bytes(target, content)
    return Exported(
        target, kind, len(content), _latency(run, _first(given)), difference, OPSET if kind == "onnx" else None
    )


def _program(net: nn.Module, given: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The network as a graph of torch's operations, for any number of examples."""
    several = tuple(torch.cat([value] * 2)[:3] if len(value) < 3 else value[:3] for value in given)
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            return torch.export.export(net, several, dynamic_shapes=tuple({0: batch} for _ in several))
    except Exception as error:  # torch raises many kinds for Python that it cannot follow
        raise NetError(
            f"{type(net).__name__} cannot be exported ({first_line(error)}): torch.export must be able to follow its forward"
        ) from error


def _torch(net: nn.Module, given: tuple[Tensor, ...]) -> tuple[bytes, Call]:
    stream = io.BytesIO()
    with _quiet():
        torch.export.save(_program(net, given), stream)
        loaded = torch.export.load(io.BytesIO(stream.getvalue())).module()

    def run(args: tuple[Tensor, ...]) -> list[Tensor]:
        with torch.no_grad():
            return _tensors(loaded(*args))

    return stream.getvalue(), run


def _onnx(net: nn.Module, given: tuple[Tensor, ...]) -> tuple[bytes, Call]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ConfigError(f"--format onnx needs {error.name}: pip install 'pyrobnn[export]'") from error
    names = ["images"] if len(given) == 1 else [f"input_{k}" for k in range(len(given))]
    program = _program(net, given)
    try:
        with _quiet():
            made = torch.onnx.export(program, input_names=names, opset_version=OPSET, dynamo=True, verbose=False)
        assert made is not None
        content = made.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exporter and the runtime raise many kinds for operations they lack
        raise NetError(
            f"{type(net).__name__} cannot be written as ONNX ({first_line(error)}): try --format torch"
        ) from error
    inputs = [entry.name for entry in session.get_inputs()]

    def run(args: tuple[Tensor, ...]) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in zip(inputs, args, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    return content, run


def _tensors(output: Any) -> list[Tensor]:
    """All tensors in an output, in the order of its containers."""
    found = [value for value in pytree.tree_leaves(output) if isinstance(value, Tensor)]
    if not found:
        raise NetError(f"the network returns no tensor to compare, got {type(output).__name__}")
    return found


def _differences(expected: list[Tensor], got: list[Tensor]) -> float:
    if [tuple(e.shape) for e in expected] != [tuple(g.shape) for g in got]:
        return float("inf")
    return max(float((e - g).abs().max() / e.abs().max().clamp(min=1e-6)) for e, g in zip(expected, got, strict=True))


def _first(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value[:1] for value in given)


def _latency(run: Call, args: tuple[Tensor, ...], repeats: int = 30) -> float:
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        run(args)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times[3:])


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print what they do, and warn of deprecations inside themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
