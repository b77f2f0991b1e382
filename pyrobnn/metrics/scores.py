"""Streaming scores of class probabilities: accuracy, NLL, calibration, Brier, entropies.

Everything streams: `Tally` holds a few dozen numbers, whatever the size of the
data set, and `PredictiveAccumulator` holds one table of mean probabilities,
whatever the number of posterior draws.

The bins behind the expected calibration error are kept here rather than in
``torchmetrics``, which stores every confidence and gives no access to the bins
that a reliability diagram needs; the tests hold the two equal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.errors import ConfigError, DataError, NumericalError

ECE_BINS = 15


@dataclass(frozen=True)
class Metrics:
    """Figures of one classifier on one set of labelled examples.

    Attributes:
        accuracy: fraction of examples whose most probable class is right.
        nll: mean negative log-likelihood of the true class, in nats.
        ece: expected calibration error of the top class, 15 equal-width bins
            (Guo et al. 2017, eq. 3).
        brier: mean over examples of the squared distance between the
            probability vector and the one-hot label; 0 to 2 (Brier 1950).
    """

    accuracy: float
    nll: float
    ece: float
    brier: float

    def to_dict(self) -> dict[str, float]:
        """The four figures under the names used in ``report.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Reliability:
    """Calibration bins of the top class; every tensor has shape ``[bins]``.

    Attributes:
        count: number of examples whose confidence falls into the bin. Bins are
            closed below and open above; the last one holds confidence 1 too.
        confidence: mean confidence in the bin (0 where the bin is empty).
        accuracy: fraction right in the bin (0 where the bin is empty).
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error: the count-weighted mean gap of the bins."""
        weight = self.count / self.count.sum().clamp(min=1)
        return float((weight * (self.accuracy - self.confidence).abs()).sum())


def class_logits(output: Tensor) -> Tensor:
    """Logits ``[B, K]``; one logit ``[B, 1]`` is that of the second of two classes.

    >>> class_logits(torch.tensor([[3.0]]))
    tensor([[0., 3.]])
    """
    return torch.cat([torch.zeros_like(output), output], 1) if output.ndim == 2 and output.shape[1] == 1 else output


class Tally:
    """Streaming accuracy, NLL, Brier score and calibration bins.

    >>> tally = Tally()
    >>> tally.add_logits(torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1]))
    >>> tally.metrics().accuracy
    1.0
    """

    def __init__(self, bins: int = ECE_BINS) -> None:
        if bins < 1:
            raise ConfigError(f"expected at least 1 calibration bin, got {bins}; give a positive number")
        self.examples = 0
        # Double on the CPU: sums of 10^5 single-precision terms lose digits, and MPS has no double.
        self._nll = self._brier = 0.0
        self._count = torch.zeros(bins, dtype=torch.float64)
        self._confidence = torch.zeros(bins, dtype=torch.float64)
        self._correct = torch.zeros(bins, dtype=torch.float64)

    def add_logits(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: logits ``[B, K]`` (any float type), labels int64 ``[B]``.

        Raises:
            NumericalError: a logit is NaN or infinite.
            DataError: the shapes do not fit.
        """
        if not bool(torch.isfinite(logits).all()):
            raise NumericalError(
                "expected finite logits, got NaN or infinity from the network; lower the learning rate "
                "or the KL weight, or look at the weights"
            )
        log_probs = F.log_softmax(class_logits(logits.float()), dim=-1)
        self._add(log_probs.exp(), log_probs, labels)

    def add_probs(self, probs: Tensor, labels: Tensor) -> None:
        """Adds a batch of class probabilities ``[B, K]`` with labels int64 ``[B]``.

        A probability of exactly 0 counts as the smallest normal float32
        (1.2e-38), so that the NLL stays finite.
        """
        probs = probs.float()
        self._add(probs, probs.clamp(min=torch.finfo(torch.float32).tiny).log(), labels)

    def _add(self, probs: Tensor, log_probs: Tensor, labels: Tensor) -> None:
        if probs.ndim != 2 or labels.shape != probs.shape[:1]:
            raise DataError(
                f"expected outputs [examples, classes] and as many labels, got {tuple(probs.shape)} and "
                f"{tuple(labels.shape)}; check the last layer and the data"
            )
        if labels.numel() == 0:
            return
        labels = labels.to(probs.device)
        column = labels[:, None]
        true_prob = probs.gather(1, column).squeeze(1)
        self._nll -= float(log_probs.gather(1, column).sum(dtype=torch.float32))
        # |p - onehot|^2 = |p|^2 - 2 p_y + 1, without building the one-hot table
        self._brier += float((probs.square().sum(1) - 2 * true_prob + 1).sum())
        confidence, predicted = probs.max(1)
        top = confidence.cpu().double()
        right = (predicted == labels).cpu().double()
        bins = len(self._count)
        # Edges in single precision, as the confidences are: 0.2 must compare equal to the edge 0.2.
        edges = torch.linspace(0, 1, bins + 1)[1:-1].double()
        index = torch.bucketize(top, edges, right=True)
        self._count += torch.bincount(index, minlength=bins)
        self._confidence += torch.bincount(index, weights=top, minlength=bins)
        self._correct += torch.bincount(index, weights=right, minlength=bins)
        self.examples += labels.numel()

    def reliability(self) -> Reliability:
        """The calibration bins, for `pyrobnn.views.plots.reliability_diagram`."""
        filled = self._count.clamp(min=1)
        return Reliability(self._count.clone(), self._confidence / filled, self._correct / filled)

    def metrics(self) -> Metrics:
        """The figures so far.

        Raises:
            DataError: nothing was added.
        """
        n = self.examples
        if n == 0:
            raise DataError("expected at least one example to measure, got none; check the split")
        return Metrics(float(self._correct.sum()) / n, self._nll / n, self.reliability().ece, self._brier / n)


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats along the last axis: ``[..., K] -> [...]``; 0·log 0 = 0.

    >>> float(entropy(torch.tensor([0.0, 1.0])))
    0.0
    """
    return torch.special.entr(probs.float()).sum(-1)


class PredictiveAccumulator:
    """Posterior predictive from a stream of draws, flat in the number of draws.

    Feed the logits of the same N examples once per posterior draw. Kept are the
    running means of the probabilities ``[N, K]`` and of the entropies ``[N]``.

    >>> acc = PredictiveAccumulator()
    >>> acc.add_logits(torch.tensor([[9.0, -9.0]])); acc.add_logits(torch.tensor([[-9.0, 9.0]]))
    >>> [round(float(v), 3) for v in (acc.probs[0, 0], acc.mutual_information[0])]   # log 2 = 0.693
    [0.5, 0.693]
    """

    def __init__(self) -> None:
        self.draws = 0
        self._probs: Tensor | None = None
        self._entropy: Tensor | None = None

    def add_logits(self, logits: Tensor) -> None:
        """Adds one draw: logits ``[N, K]`` (or one, see `class_logits`) of the same N examples as before.

        Raises:
            NumericalError: a logit is NaN or infinite.
            DataError: the shape differs from that of earlier draws.
        """
        if not bool(torch.isfinite(logits).all()):
            raise NumericalError("expected finite logits, got NaN or infinity in a draw; check the fit")
        self.add_probs(F.softmax(class_logits(logits.detach().float()), dim=-1))

    def add_probs(self, probs: Tensor) -> None:
        """Adds one draw given as class probabilities ``[N, K]``."""
        probs = probs.detach().float()
        if self._probs is None or self._entropy is None:
            self._probs, self._entropy = torch.zeros_like(probs), torch.zeros_like(probs[..., 0])
        if probs.shape != self._probs.shape:
            raise DataError(
                f"expected outputs of shape {tuple(self._probs.shape)} as in earlier draws, got "
                f"{tuple(probs.shape)}; use one accumulator per set of examples"
            )
        self.draws += 1
        self._probs += (probs - self._probs) / self.draws
        self._entropy += (entropy(probs) - self._entropy) / self.draws

    def _state(self) -> tuple[Tensor, Tensor]:
        if self._probs is None or self._entropy is None:
            raise DataError("expected at least one posterior draw, got none; call add_logits first")
        return self._probs, self._entropy

    @property
    def probs(self) -> Tensor:
        """Posterior predictive probabilities, the mean over draws: ``[N, K]``."""
        return self._state()[0].clone()

    @property
    def predictive_entropy(self) -> Tensor:
        """Total uncertainty, the entropy of the mean: ``[N]``, nats."""
        return entropy(self._state()[0])

    @property
    def expected_entropy(self) -> Tensor:
        """Uncertainty of the data, the mean of the entropies: ``[N]``, nats."""
        return self._state()[1].clone()

    @property
    def mutual_information(self) -> Tensor:
        """Uncertainty of the weights, total minus expected entropy: ``[N]``, nats.

        The difference is non-negative by Jensen's inequality; rounding below 0
        is cut off. (Houlsby et al. 2011, eq. 2.)
        """
        return (self.predictive_entropy - self._state()[1]).clamp(min=0)

    def metrics(self, labels: Tensor) -> Metrics:
        """Accuracy, NLL, ECE and Brier score of the mean probabilities."""
        tally = Tally()
        tally.add_probs(self._state()[0], labels)
        return tally.metrics()
