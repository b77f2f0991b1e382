"""Moments with a full covariance per map: the published form of extended VI, for small networks.

An activation carries the covariance of all positions inside a map; maps count as independent of each
other, and the units of a linear layer have a full covariance. Two forms
(:func:`~pyrobnn.moments.moment_options`, ``covariance=``):

* ``"full"``: the exact three terms at each convolution, M'ΣM + tr(σ²Σ) + μ'σ²μ, for independent weights
  and independent maps. A nonlinearity keeps its exact variances; off the diagonal
  Cov(f(x), f(y)) = E[f'(x)] E[f'(y)] Cov(x, y), the leading term of the Hermite series.
* ``"published"``: as in the code of Dera et al. (Variational Density Propagation): a later convolution sees
  only the *diagonal* of its input's covariance in the terms M'ΣM and tr(σ²Σ), and nonlinearities are
  linearised at the mean. (Average pooling is not in that code; it takes the covariance as it is.)

Memory grows with the square of the map: B·C·(H·W)² numbers. Larger maps are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrobnn.errors import NetError
from pyrobnn.moments.registry import METADATA, _where
from pyrobnn.moments.tensor import Moments, _no_dispatch

LIMIT = 1 << 27  # entries of one covariance (512 MB in fp32)


class FullMoments(Moments):
    """Activations with a covariance per map.

    Attributes:
        loc: means ``[B, C, *S]`` or ``[B, D]``.
        blocks: ``[B, G, n, n]`` with G·n numbers per example: one block per map of n positions, or a single
            block for the units of a linear layer. Entries of different blocks are independent.
    """

    blocks: Tensor

    @property
    def covariance(self) -> Tensor:
        """Covariance of all entries of an example, ``[B, D, D]``."""
        if self.blocks.shape[1] == 1:
            return self.blocks[:, 0]
        rows = [torch.block_diag(*example) for example in self.blocks]
        return torch.stack(rows)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with _no_dispatch():
            return _dispatch(func, args, {} if kwargs is None else dict(kwargs))


def full(loc: Tensor, blocks: Tensor) -> FullMoments:
    """An activation from its means and covariance blocks."""
    new: FullMoments = torch.Tensor._make_wrapper_subclass(FullMoments, loc.shape, dtype=loc.dtype, device=loc.device)
    plain = Moments(loc, blocks.diagonal(dim1=-2, dim2=-1).reshape(loc.shape))
    new._loc, new._held, new.reading, new.sources = loc, plain._variance, "moments", ()
    new._replay, new._sample, new._store, new._seen = None, None, plain._store, 0
    new.blocks = blocks
    return new


def check_size(batch: int, groups: int, entries: int) -> None:
    """Refuses a covariance that would not fit in memory."""
    if batch * groups * entries**2 > LIMIT:
        raise NetError(
            f"moments: a full covariance of {groups} maps of {entries} positions for {batch} examples takes "
            f"{batch * groups * entries**2:.1e} numbers (limit {LIMIT:.1e}): use covariance='diagonal', smaller "
            "maps or smaller batches."
        )


_RULES: dict[Any, Callable[..., Any]] = {}


def full_rule(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a rule for these functions, for activations that are `FullMoments`."""

    def enter(apply: Callable[..., Any]) -> Callable[..., Any]:
        _RULES.update(dict.fromkeys(functions, apply))
        return apply

    return enter


def _dispatch(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func in METADATA:
        return func(args[0]._loc, *args[1:], **kwargs)
    apply = _RULES.get(func)
    inplace = bool(kwargs.pop("inplace", False)) or (func.__name__.endswith("_") and not func.__name__.endswith("__"))
    result = NotImplemented if apply is None else apply(*args, **kwargs)
    if result is NotImplemented:
        raise NetError(f"moments: no rule carries a full covariance through {_where(func)}; use covariance='diagonal'.")
    if inplace and isinstance(args[0], FullMoments):
        target = args[0]
        target._loc, target._held, target.blocks = result._loc, result._held, result.blocks
        return target
    return result
