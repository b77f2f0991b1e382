"""Expected log-likelihoods of class labels when the logits are Gaussian."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrobnn.errors import ConfigError
from pyrobnn.moments.gaussian import log_softmax_moments
from pyrobnn.moments.tensor import Moments

Kind = Literal["sampled", "second_order", "gaussian"]


def sampled_log_likelihood(
    mean: Tensor, variance: Tensor, labels: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """log softmax at one reparameterised draw of the logits: an unbiased estimate of E log p(y | logits).

    Args:
        mean: logits' means ``[B, C]``.
        variance: logits' variances ``[B, C]``.
        labels: class indices ``[B]``.
        generator: source of the noise; the global one if absent.

    Returns:
        ``[B]`` in nats, fp32.

    Example:
        >>> sampled_log_likelihood(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([2])).exp().item()
        0.25
    """
    mean, variance = mean.float(), variance.float()
    noise = torch.empty_like(mean).normal_(generator=generator)
    positive = variance > 0  # the slope of a root at 0 is infinite
    std = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
    return _pick(F.log_softmax(torch.addcmul(mean, std, noise), -1), labels)


def second_order_log_likelihood(mean: Tensor, variance: Tensor, labels: Tensor) -> Tensor:
    """E log p(y) ≈ log softmax_y(μ) − ½ Σ_c p_c (1 − p_c) v_c (Taylor; reconstructed).

    Args and shapes as :func:`sampled_log_likelihood`; deterministic.
    """
    return _pick(log_softmax_moments(mean.float(), variance.float(), -1)[0], labels)


def gaussian_log_likelihood(mean: Tensor, variance: Tensor, labels: Tensor, *, jitter: float = 1e-3) -> Tensor:
    """The extended-VI likelihood: the softmax output is Gaussian around the one-hot label.

    With p = softmax(μ), J = diag(p) − ppᵀ and Σ = J diag(v) Jᵀ + jitter·I:
    −½ (y − p)ᵀ Σ⁻¹ (y − p) − ½ log|Σ|, the constant left out as in the authors' code (Dera et al.;
    formulas transcribed from that code).

    Args:
        mean: logits' means ``[B, C]``.
        variance: logits' variances ``[B, C]``.
        labels: class indices ``[B]``.
        jitter: added to the diagonal of Σ.

    Returns:
        ``[B]`` (a log-density up to a constant), fp32.
    """
    mean, variance = mean.float(), variance.float()
    p = F.softmax(mean, -1)
    jacobian = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    sigma = (jacobian * variance.unsqueeze(-2)) @ jacobian.mT
    return gaussian_output_log_likelihood(p, sigma, labels, jitter=jitter)


def gaussian_output_log_likelihood(p: Tensor, sigma: Tensor, labels: Tensor, *, jitter: float = 1e-3) -> Tensor:
    """As :func:`gaussian_log_likelihood`, for a given output mean ``[B, C]`` and full covariance ``[B, C, C]``."""
    size = p.shape[-1]
    residual = F.one_hot(labels, size).to(p.dtype) - p
    factor = torch.linalg.cholesky(sigma + jitter * torch.eye(size, dtype=p.dtype, device=p.device))
    solved = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False).squeeze(-1)
    return -0.5 * solved.square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _pick(log_p: Tensor, labels: Tensor) -> Tensor:
    return log_p.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)


_KINDS = {
    "sampled": sampled_log_likelihood,
    "second_order": second_order_log_likelihood,
    "gaussian": gaussian_log_likelihood,
}


class MomentCategorical(TorchDistribution):
    """Class labels given Gaussian logits, as a distribution for ``pyro.sample(..., obs=labels)``.

    ``log_prob`` is an *expected* log-likelihood of the chosen kind, per example.

    Args:
        logits: a :class:`Moments` of shape ``[B, C]``.
        kind: ``"sampled"`` (unbiased, default), ``"second_order"`` or ``"gaussian"`` (extended VI).

    Raises:
        ConfigError: unknown ``kind``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = False

    def __init__(self, logits: Moments, kind: Kind = "sampled") -> None:
        if kind not in _KINDS:
            raise ConfigError(f"moment likelihood: expected one of {', '.join(_KINDS)}, got {kind!r}.")
        self.loc, self.variance_of_logits, self.kind = logits.loc, logits.variance, kind
        super().__init__(self.loc.shape[:-1], validate_args=False)

    @property
    def support(self) -> Any:
        """Class indices."""
        return constraints.integer_interval(0, self.loc.shape[-1] - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MomentCategorical:
        """Broadcast over further batch dimensions."""
        new = self._get_checked_instance(MomentCategorical, _instance)
        shape = (*batch_shape, self.loc.shape[-1])
        new.loc, new.variance_of_logits = self.loc.expand(shape), self.variance_of_logits.expand(shape)
        new.kind = self.kind
        super(MomentCategorical, new).__init__(torch.Size(batch_shape), validate_args=False)
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Labels from logits drawn once per sample."""
        shape = (*sample_shape, *self.loc.shape)
        with torch.no_grad():
            logits = self.loc.float() + torch.randn(shape, device=self.loc.device) * self.variance_of_logits.sqrt()
            flat = logits.softmax(-1).reshape(-1, self.loc.shape[-1])
            return torch.multinomial(flat, 1).view(shape[:-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """Expected log-likelihood of ``value``, ``[B]``."""
        result: Tensor = _KINDS[self.kind](self.loc, self.variance_of_logits, value)
        return result
