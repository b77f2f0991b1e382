"""`propagate`: runs a network on moments; finds weights that a forward pass uses more than once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.errors import NetError
from pyrobnn.moments.full import FullMoments
from pyrobnn.moments.options import moment_options
from pyrobnn.moments.tensor import Moments
from pyrobnn.nets.functional import call_with

Value = Tensor | tuple[Tensor, Tensor]


def propagate(
    net: nn.Module, tensors: Mapping[str, Value], x: Value, *, covariance: str = "diagonal"
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the network's output under independent Gaussian weights, without sampling.

    Args:
        net: any module whose operations have rules; not changed (in training mode its BatchNorm statistics
            move as in any forward pass).
        tensors: ``{parameter name: value}``; a value is a plain tensor, a :class:`Moments`, or a pair
            ``(mean, variance)``. Parameters that are not named keep the network's own value.
        x: input ``[B, ...]``, or a pair ``(mean, variance)`` for an uncertain input.
        covariance: ``"diagonal"``, or ``"full"`` or ``"published"`` for a covariance inside every map (small
            networks; :mod:`pyrobnn.moments.full`).

    Returns:
        mean and variance of the output, ``[B, ...]``; the variance is fp32 and zero if nothing was random. With
        a full covariance the second is the covariance of each example's outputs, ``[B, D, D]``.

    Raises:
        NetError: an operation has no rule (named with its module), a map is too large for a full covariance,
            or the output is not one tensor.
        ConfigError: an unknown ``covariance``.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> mean, variance = propagate(net, {"weight": (torch.ones(1, 2), torch.ones(1, 2))}, torch.ones(1, 2))
        >>> mean.item(), variance.item()
        (2.0, 2.0)
    """
    values = {name: _as_weight(name, value) for name, value in tensors.items()}
    if isinstance(x, tuple):
        x = Moments(*x)
    with moment_options(covariance=covariance):
        output = call_with(net, values, (x,))
    if isinstance(output, FullMoments):
        return output.loc, output.covariance
    if isinstance(output, Moments):
        return output.loc, output.variance
    if not isinstance(output, Tensor):
        raise NetError(f"propagate: expected the net to return one tensor, got {type(output).__name__}.")
    zero = torch.zeros_like(output, dtype=torch.float32)
    return output, zero if covariance == "diagonal" else torch.diag_embed(zero.flatten(1))


def _as_weight(name: str, value: Value) -> Tensor:
    if isinstance(value, tuple):
        return Moments.weight(*value, mode="moments", name=name)
    if isinstance(value, Moments) and value.reading == "local":
        return Moments.weight(value.loc, value.variance, mode="moments", name=name)
    return value


@torch.no_grad()
def shared_weights(net: nn.Module, x: Any) -> frozenset[str]:
    """Names of parameters that convolutions or linear layers consume more than once in one forward pass.

    Such weights must be sampled, not locally reparameterised (see
    :class:`~pyrobnn.moments.MomentMessenger`). The network's mode, buffers and the RNG state are as before.

    Args:
        net: any module.
        x: one input batch.

    Example:
        >>> class Tied(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.once, self.twice = nn.Linear(3, 3), nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return self.twice(self.twice(self.once(x)))
        >>> sorted(shared_weights(Tied(), torch.ones(1, 3)))
        ['twice.weight']
    """
    found: set[str] = set()
    values: dict[str, Tensor] = {name: b.clone() for name, b in net.named_buffers()}
    for name, p in net.named_parameters():
        if p.dim() > 1 and p.is_floating_point():
            values[name] = Moments.weight(
                p, torch.zeros((), device=p.device), "local", draw=p, name=name, on_shared=found.add
            )
    devices = [x.device] if isinstance(x, Tensor) and x.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        call_with(net, values, (x,))
    return frozenset(found)
