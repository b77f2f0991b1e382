"""Paired tests of two networks on the same test examples, and the claim that they support."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn.errors import DataError
from pyrobnn.metrics.metric import Metric, resampled

DRAWS = 2_000  # of the bootstrap
_Z = 1.959963984540054  # 97.5 % of a standard normal


@dataclass(frozen=True)
class Comparison:
    """A compact network beside its dense one.

    Attributes:
        metric: Name of the figure.
        test: ``"McNemar"`` or ``"paired bootstrap"``.
        difference: Figure of the compact network minus that of the dense one.
        interval: 95 % interval of the difference.
        p_value: Two-sided, of no difference.
        images: Test examples.
        claim: In words, what may be claimed.
        share: The figure is a fraction of 1.
        only_dense_right, only_compact_right: Examples that one of the two gets right (classification).
    """

    metric: str
    test: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    images: int
    claim: str
    share: bool = True
    only_dense_right: int | None = None
    only_compact_right: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For ``report.json``."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return {**found, "interval": list(self.interval)}


def compare(metric: Metric, dense: Tensor, compact: Tensor) -> Comparison:
    """Compares two networks by their statistics ``[N, S]`` on the same examples.

    Statistics of 0 and 1 (accuracy) get the exact McNemar test, others a paired bootstrap.

    Raises:
        DataError: Not the same examples.
    """
    if dense.shape != compact.shape or dense.ndim != 2 or not len(dense):
        raise DataError(
            f"expected statistics of the same examples, got {tuple(dense.shape)} and {tuple(compact.shape)}"
        )
    if (
        dense.shape[1] == 1
        and bool(((dense == 0) | (dense == 1)).all())
        and bool(((compact == 0) | (compact == 1)).all())
    ):
        lost, won = int((dense > compact).sum()), int((dense < compact).sum())
        interval, p_value = paired_interval(won, lost, len(dense)), mcnemar(won, lost)
        difference = (won - lost) / len(dense)
        claim = _claim(metric, difference, interval, p_value, len(dense), "McNemar")
        return Comparison(metric.name, "McNemar", difference, interval, p_value, len(dense), claim, True, lost, won)
    difference = float(metric.value(compact.mean(0)) - metric.value(dense.mean(0)))
    # The same seed draws the same examples for both.
    drawn = metric.value(resampled(compact, DRAWS, seed=0)) - metric.value(resampled(dense, DRAWS, seed=0))
    low, high = (float(q) for q in torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)))
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (DRAWS + 1))
    claim = _claim(metric, difference, (low, high), p_value, len(dense), "paired bootstrap")
    return Comparison(
        metric.name, "paired bootstrap", difference, (low, high), p_value, len(dense), claim, metric.share
    )


def mcnemar(won: int, lost: int) -> float:
    """Two-sided exact p-value: would a fair coin split the disagreements like that? (McNemar 1947, binomial form.)

    >>> mcnemar(0, 5), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    total = won + lost
    terms = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(min(won, lost) + 1)
    ]
    return min(1.0, round(2 * math.fsum(map(math.exp, terms)), 12))


def paired_interval(won: int, lost: int, count: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions (Agresti and Min 2005: half an example in each cell).

    Args:
        won: Examples that only the second gets right.
        lost: Examples that only the first gets right.
        count: All examples.
    """
    more, less, total = won + 0.5, lost + 0.5, count + 2
    difference = (more - less) / total
    error = math.sqrt(more + less - (more - less) ** 2 / total) / total
    return max(-1.0, difference - _Z * error), min(1.0, difference + _Z * error)


def _claim(
    metric: Metric, difference: float, interval: tuple[float, float], p_value: float, count: int, test: str
) -> str:
    """One sentence, in the direction of loss and gain."""
    low, high = sorted(metric.gain(end) for end in interval)
    gain = metric.gain(difference)
    said = f"95 % interval {_amount(metric, low)} to {_amount(metric, high)}, {test} p = {p_value:.2g}"
    if high < 0:
        return f"The compact network is worse: {metric.name} {_amount(metric, gain)} on {count:,} test images ({said})."
    if low > 0:
        return (
            f"The compact network is better: {metric.name} {_amount(metric, gain)} on {count:,} test images ({said})."
        )
    most = _amount(metric, -low, sign=False)
    return (
        f"No difference of {metric.name} can be claimed from {count:,} test images ({_amount(metric, gain)}; {said}); "
        f"a loss of up to {most} cannot be ruled out."
    )


def _amount(metric: Metric, gain: float, sign: bool = True) -> str:
    number = f"{gain:+.2f}" if sign else f"{max(0.0, gain):.2f}"
    if not metric.share:
        number = f"{gain if metric.higher or not sign else -gain:{'+' if sign else ''}.3g}"
    return number.replace("-", "−") + (" points" if metric.share else "")
