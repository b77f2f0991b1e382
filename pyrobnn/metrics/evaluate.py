"""Measures a network: accuracy, calibration, uncertainty, robustness, speed.

The scores themselves are in `pyrobnn.metrics.scores` and can be imported from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyrobnn.errors import ConfigError, DataError, NumericalError
from pyrobnn.io.processes import current
from pyrobnn.metrics.latency import latency_ms
from pyrobnn.metrics.scores import Metrics, PredictiveAccumulator, Reliability, Tally, class_logits, entropy
from pyrobnn.nets.calling import eval_mode, output_of

if TYPE_CHECKING:
    from pyrobnn.data.split import Split

__all__ = [
    "Metrics",
    "PredictiveAccumulator",
    "Reliability",
    "SelectiveCurve",
    "Tally",
    "agreement",
    "entropy",
    "eval_mode",
    "evaluate",
    "iter_logits",
    "latency_ms",
    "module_bytes",
    "noise_accuracy",
    "ood_auroc",
    "predict_logits",
    "selective_prediction",
]

NOISE_SIGMAS = (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class SelectiveCurve:
    """Risk against coverage when the most uncertain examples are refused.

    Attributes:
        coverage: ``[N]``, k/N for k = 1 … N answered examples.
        risk: ``[N]``, error rate among the k most certain examples.
        aurc: area under the curve, the mean of `risk`.
    """

    coverage: Tensor
    risk: Tensor
    aurc: float


def ood_auroc(scores_in: Tensor, scores_out: Tensor) -> float:
    """Probability that an unknown example scores higher than a known one.

    The area under the ROC curve by ranks (Mann–Whitney); ties count one half.

    Args:
        scores_in: uncertainty of in-distribution examples, ``[N]``.
        scores_out: uncertainty of out-of-distribution examples, ``[M]``.

    >>> ood_auroc(torch.tensor([0.1, 0.2]), torch.tensor([0.2, 0.9]))
    0.875
    """
    known = scores_in.detach().flatten().cpu().double().sort().values
    unknown = scores_out.detach().flatten().cpu().double()
    if known.numel() == 0 or unknown.numel() == 0:
        raise DataError(f"expected scores on both sides, got {known.numel()} in and {unknown.numel()} out; give both")
    if not bool(torch.isfinite(known).all() and torch.isfinite(unknown).all()):
        raise NumericalError("expected finite scores, got NaN or infinity; check the predictions")
    below = torch.searchsorted(known, unknown, right=False)
    not_above = torch.searchsorted(known, unknown, right=True)
    return float((below + not_above).double().mean() / (2 * known.numel()))


def selective_prediction(uncertainty: Tensor, correct: Tensor) -> SelectiveCurve:
    """Risk–coverage curve and its area (Geifman and El-Yaniv 2017).

    Examples of equal uncertainty share their mean error, so the curve does not
    depend on the order in which the examples come.

    Args:
        uncertainty: ``[N]``, larger means refused earlier (entropy, 1 − confidence, …).
        correct: bool ``[N]``, whether the prediction is right.

    >>> selective_prediction(torch.tensor([0.9, 0.1]), torch.tensor([False, True])).risk.tolist()
    [0.0, 0.5]
    """
    score = uncertainty.detach().flatten().cpu().double()
    error = 1 - correct.detach().flatten().cpu().double()
    n = score.numel()
    if n == 0 or error.numel() != n:
        raise DataError(f"expected as many scores as predictions, got {n} and {error.numel()}; give one of each")
    _, tie, size = score.unique(return_inverse=True, return_counts=True)  # sorted, ascending
    shared = torch.bincount(tie, weights=error) / size
    answered = torch.arange(1, n + 1, dtype=torch.float64)
    risk = shared.repeat_interleave(size).cumsum(0) / answered
    return SelectiveCurve(answered / n, risk, float(risk.mean()))


def agreement(logits_a: Tensor, logits_b: Tensor) -> float:
    """Fraction of examples for which two nets name the same class; both ``[N, K]``."""
    if logits_a.shape != logits_b.shape or logits_a.ndim != 2 or len(logits_a) == 0:
        raise DataError(
            f"expected two outputs of one shape [examples, classes], got {tuple(logits_a.shape)} and "
            f"{tuple(logits_b.shape)}; feed both nets the same examples"
        )
    return float((logits_a.argmax(1).cpu() == logits_b.argmax(1).cpu()).double().mean())


def _device_of(net: nn.Module) -> torch.device:
    tensor = next(iter(net.parameters()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _forward(net: nn.Module, x: Tensor, precision: str) -> Tensor:
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"expected precision 'fp32' or 'bf16', got {precision!r}; choose one of them")
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return output_of(net, x).float()


def iter_logits(
    net: nn.Module,
    split: Split,
    *,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (float32 ``[B, K]``) and labels of a split, batch by batch, in its order.

    The net runs in evaluation mode without gradients and gets its own mode back.
    It is not moved: `device` (default: where the net is) is where the batches go.
    Processes that share a run take turns with the batches, and all of them get all logits, on the CPU.
    """
    place, processes = _device_of(net) if device is None else device, current()
    if processes.alone:
        with eval_mode(net):
            for x, y in split.batches(batch_size, device=place, channels_last=channels_last):
                yield _forward(net, x, precision), y
        return
    batch_size = min(batch_size, max(2, -(-len(split) // processes.size)))
    turns = (processes.rank, processes.size)
    batches = split.batches(batch_size, device=place, channels_last=channels_last, turns=turns)
    with eval_mode(net):
        for _ in range(0, split.steps(batch_size), processes.size):
            batch = next(batches, None)
            mine = None if batch is None else (_forward(net, batch[0], precision).cpu(), batch[1].cpu())
            yield from (pair for pair in processes.each(mine) if pair is not None)


def evaluate(
    net: nn.Module,
    split: Split,
    *,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
) -> Metrics:
    """Accuracy, NLL, ECE and Brier score of a plain net over a whole split.

    Args:
        net: any module that maps images ``[B, C, H, W]`` to logits ``[B, K]``.
        split: the labelled images; its order does not matter.
        batch_size: images per forward pass.
        device: where the batches go; by default where the net is.
        precision: ``"fp32"``, or ``"bf16"`` for autocast. The figures are always
            computed from float32 logits.
        channels_last: memory layout of the batches.

    Raises:
        NumericalError: the net returns NaN or infinity.
        ConfigError: an unknown precision.
    """
    tally = Tally()
    for logits, labels in iter_logits(
        net, split, batch_size=batch_size, device=device, precision=precision, channels_last=channels_last
    ):
        tally.add_logits(logits, labels)
    return tally.metrics()


def predict_logits(
    net: nn.Module,
    split: Split,
    *,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logits ``[N, K]`` and labels ``[N]`` of a split on the CPU; settings as for `evaluate`."""
    pairs = [
        (logits.cpu(), labels.cpu())
        for logits, labels in iter_logits(
            net, split, batch_size=batch_size, device=device, precision=precision, channels_last=channels_last
        )
    ]
    if not pairs:
        raise DataError("expected at least one example to predict, got none; check the split")
    return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])


def noise_accuracy(
    net: nn.Module,
    split: Split,
    sigmas: Sequence[float] = NOISE_SIGMAS,
    seed: int = 0,
    *,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
) -> dict[float, float]:
    """Accuracy under white Gaussian pixel noise, per strength.

    Every strength sees the same noise pattern, so the curve is smooth. The noise
    is drawn on the CPU and therefore the same on every device. Pixels are not
    clipped to their range afterwards.

    Args:
        net: maps normalised images ``[B, C, H, W]`` to logits.
        split: clean labelled images; its `std` converts the strengths.
        sigmas: standard deviations on the pixel scale 0–1.
        seed: of the noise.
        batch_size, device, precision, channels_last: as for `evaluate`.

    Returns:
        ``{sigma: accuracy}`` in the order given.
    """
    generator = torch.Generator().manual_seed(seed)
    std = torch.as_tensor(split.std, dtype=torch.float32).view(-1, *(1,) * (split.images.ndim - 2))
    place = _device_of(net) if device is None else device
    right, n, processes = dict.fromkeys(sigmas, 0), 0, current()
    with eval_mode(net):
        for number, (x, y) in enumerate(split.batches(batch_size, device=place, channels_last=channels_last)):
            noise = (torch.randn(x.shape, generator=generator) / std).to(x.device)
            n += len(y)
            if number % processes.size != processes.rank:
                continue
            for sigma in right:
                right[sigma] += int((class_logits(_forward(net, x + sigma * noise, precision)).argmax(1) == y).sum())
    counts = torch.tensor(list(right.values()))
    processes.sum(counts)
    right = dict(zip(right, counts.tolist(), strict=True))
    if n == 0:
        raise DataError("expected at least one example to measure, got none; check the split")
    return {sigma: count / n for sigma, count in right.items()}


def module_bytes(net: nn.Module) -> int:
    """Bytes of all parameters and buffers, each shared tensor once.

    >>> module_bytes(nn.Linear(3, 2))   # (6 + 2) float32
    32
    """
    tensors = [*net.parameters(), *net.buffers()]
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
