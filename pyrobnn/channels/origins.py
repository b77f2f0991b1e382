"""Which axis of which parameter a derived tensor has: parameters that are viewed, cast or masked before they are used.

A parameter ``[C, H, W]`` that is added to an activation, or ``weight_orig * mask``, has no channel labels of its own:
which axis is the channel axis shows where it meets an activation. Until then each long axis carries its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn.channels.labels import shrunk, varying

_ORIGINS = "_channel_origins"
_MOVES = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "moveaxis"),
    *(
        "swapaxes",
        "swapdims",
        "t",
        "T",
        "mT",
        "expand",
        "broadcast_to",
        "view_as",
        "reshape_as",
        "expand_as",
        "getitem",
    ),
}
_SAME = {
    *(
        "to",
        "float",
        "double",
        "half",
        "bfloat16",
        "type",
        "contiguous",
        "clone",
        "detach",
        "data",
        "abs",
        "exp",
        "relu",
    ),
    *("sigmoid", "tanh", "softplus", "neg", "square", "sqrt", "cpu", "cuda", "type_as", "alias", "requires_grad"),
}
_PAIRS = {"mul", "multiply", "div", "truediv", "true_divide", "add", "sub"}


@dataclass(frozen=True)
class Origin:
    """A parameter or buffer behind a tensor.

    Attributes:
        name: of the parameter or buffer.
        axes: per axis of it, its positions laid out in the shape of the tensor.
    """

    name: str
    axes: Mapping[int, Tensor]

    def axis_along(self, axis: int, size: int) -> int | None:
        """The parameter's axis that lies along this one of the tensor, position by position; None if there is none."""
        for own, positions in self.axes.items():
            small = shrunk(positions)
            if varying(small) == (axis,) and torch.equal(small.reshape(-1), torch.arange(size)):
                return own
        return None

    def is_whole(self, tensor: Tensor) -> bool:
        """Whether the tensor is laid out as the parameter."""
        return all(self.axis_along(axis, tensor.shape[axis]) == axis for axis in self.axes)


def of_parameter(name: str, tensor: Tensor) -> Origin:
    """A parameter as its own origin."""
    axes = {}
    for axis, size in enumerate(tensor.shape):
        if size > 1:
            axes[axis] = (
                torch.arange(size).view([-1 if a == axis else 1 for a in range(tensor.dim())]).expand(tensor.shape)
            )
    return Origin(name, axes)


def origins(tensor: Any) -> list[Origin]:
    """What was noted for a tensor that is no parameter itself."""
    found: list[Origin] = getattr(tensor, _ORIGINS, [])
    return found


def follow(name: str, function: Callable[..., Any], args: Any, kwargs: Any, out: Any, find: Callable[..., Any]) -> None:
    """Note the origins of what an operation returns, where it moves numbers or changes each by itself."""
    if not args or not isinstance(out, Tensor) or not isinstance(args[0], Tensor):
        return
    before: list[Origin] = find(args[0])
    if name in _PAIRS and len(args) > 1:
        second = args[1]
        if isinstance(second, Tensor):  # a number that is computed from the weights is no constant
            if not find(second) or second.shape not in (args[0].shape, torch.Size()):
                return
            before = [*before, *(find(second) if second.dim() else ())]
    elif name not in _SAME and name not in _MOVES:
        return
    if not before:
        return
    if name not in _MOVES:
        if out.shape == args[0].shape:
            setattr(out, _ORIGINS, before)
        return
    property_like = name in ("T", "mT")
    moved = []
    for origin in before:
        axes = {a: function(p) if property_like else function(p, *args[1:], **kwargs) for a, p in origin.axes.items()}
        moved.append(Origin(origin.name, axes))
    if all(positions.shape == out.shape for origin in moved for positions in origin.axes.values()):
        setattr(out, _ORIGINS, moved)
