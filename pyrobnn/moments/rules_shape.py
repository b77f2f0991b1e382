"""Moment rules of operations that move numbers: the variance moves with the mean.

Views share their base's write counter, so an in-place operation after a view was taken is noticed.
Movements that repeat entries (``expand``, ``index_select``, ...) make them correlated; a weight is sampled
there, an activation goes on with the diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.moments.registry import getter, ops, rule
from pyrobnn.moments.tensor import Moments, activation, is_weight, parts, plain, share_store

_T = torch.Tensor


def _moved(func: Callable[..., Any], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Mean and variance may differ in memory layout: where one cannot be viewed, its copy can."""
    try:
        return func(x, *args, **kwargs)
    except RuntimeError:
        return func(x.contiguous(), *args, **kwargs)


def _enter(*functions: Callable[..., Any], view: bool, kind: Any = "linear") -> None:
    for func in functions:

        def move(input: Any, *args: Any, _func: Callable[..., Any] = func, **kwargs: Any) -> Any:
            if not isinstance(input, Moments) or any(isinstance(a, Moments) for a in (*args, *kwargs.values())):
                return NotImplemented if isinstance(input, Moments) else _func(input, *args, **kwargs)
            loc, variance = (_moved(_func, t, args, kwargs) for t in (input._loc, input._variance))
            if isinstance(loc, Tensor):
                moved = activation(loc, variance)
                return share_store(moved, input) if view else moved
            pieces = [activation(a, b) for a, b in zip(loc, variance, strict=True)]
            return tuple(share_store(p, input) for p in pieces) if view else tuple(pieces)

        rule(func, kind=kind)(move)


_VIEWS = (
    "flatten",
    "unflatten",
    "view",
    "view_as",
    "reshape",
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "squeeze",
    "unsqueeze",
    "t",
    "chunk",
    "split",
    "tensor_split",
    "unbind",
    "narrow",
    "select",
    "ravel",
)
_COPIES = (
    "flip",
    "roll",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "rot90",
    "fliplr",
    "flipud",
)
_REPEATS = (
    "expand",
    "expand_as",
    "repeat",
    "repeat_interleave",
    "tile",
    "broadcast_to",
    "index_select",
    "gather",
    "take_along_dim",
    "unfold",
)


def _forms(names: tuple[str, ...]) -> tuple[Callable[..., Any], ...]:
    found = [getattr(home, n) for n in names for home in (torch, _T) if callable(getattr(home, n, None))]
    return tuple(dict.fromkeys(found))


_enter(*_forms(_VIEWS), view=True)
_enter(getter("T"), getter("mT"), _T.__iter__, view=True)
_enter(*_forms(_COPIES), F.pixel_shuffle, F.pixel_unshuffle, view=False)
_enter(*_forms(_REPEATS), F.unfold, view=True, kind="activation")


@rule(torch.clone, _T.clone, _T.contiguous, kind="linear")
def _copy(input: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(input, Moments):
        return torch.clone(input, *args, **kwargs)
    return activation(
        input._loc.clone(*args, **kwargs) if not args else input._loc.clone(memory_format=args[0]),
        input._variance,
    )


@rule(torch.detach, _T.detach, getter("data"), kind="linear")
def _detach(input: Any) -> Any:
    return activation(input._loc.detach(), input._variance.detach()) if isinstance(input, Moments) else input.detach()


@rule(_T.to, _T.type, kind="linear")
def _to(input: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(input, Moments):
        return input.to(*args, **kwargs)
    loc = input._loc.to(*args, **kwargs)
    variance = input._variance.to(loc.device)
    return activation(loc, variance.double() if loc.dtype == torch.float64 else variance)


def _enter_casts() -> None:
    for name in ("float", "double", "half", "bfloat16", "cpu", "cuda", "type_as"):
        func = getattr(_T, name)

        def cast(input: Any, *args: Any, _func: Callable[..., Any] = func, **kwargs: Any) -> Any:
            if not isinstance(input, Moments):
                like = args[0]._loc if args and isinstance(args[0], Moments) else None
                return _func(input, *args, **kwargs) if like is None else input.to(like)
            if args and isinstance(args[0], Moments):
                args = (args[0]._loc, *args[1:])
            loc = _func(input._loc, *args, **kwargs)
            variance = input._variance.to(loc.device)
            return activation(loc, variance.double() if loc.dtype == torch.float64 else variance)

        rule(func, kind="linear")(cast)


_enter_casts()


@rule(_T.__getitem__, kind="linear")
def _getitem(input: Any, index: Any) -> Any:
    if not isinstance(input, Moments):
        return NotImplemented
    advanced = any(isinstance(i, (Tensor, list)) for i in (index if isinstance(index, tuple) else (index,)))
    if advanced and is_weight(input):
        return NotImplemented  # may repeat entries
    taken = activation(input._loc[index], input._variance[index])
    return taken if advanced else share_store(taken, input)


def _joined(tensors: Any) -> tuple[list[Tensor], list[Tensor]]:
    locs, variances = [], []
    for x in tensors:
        loc, variance = parts(x)
        locs.append(loc)
        variances.append(torch.zeros_like(loc, dtype=torch.float32) if variance is None else variance)
    return locs, variances


def _enter_joins() -> None:
    for name in ("cat", "concat", "concatenate", "stack", "hstack", "vstack"):
        func = getattr(torch, name)

        def join(tensors: Any, *args: Any, _func: Callable[..., Any] = func, **kwargs: Any) -> Any:
            if len({s for x in tensors if is_weight(x) for s in x.sources}) < sum(map(is_weight, tensors)):
                tensors = [plain(x) for x in tensors]  # one weight twice: its copies move together
            if not any(isinstance(x, Moments) for x in tensors):
                return _func(tensors, *args, **kwargs)
            locs, variances = _joined(tensors)
            return activation(_func(locs, *args, **kwargs), _func(variances, *args, **kwargs))

        rule(func, kind="linear")(join)


_enter_joins()


@rule(F.pad, torch._C._nn.pad, kind="linear")
def _pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    """A padded constant is certain; the other modes copy entries."""
    if not isinstance(input, Moments):
        return F.pad(input, pad, mode, value)
    if is_weight(input) and mode != "constant":
        return NotImplemented
    loc = F.pad(input._loc, pad, mode, value) if mode == "constant" else F.pad(input._loc, pad, mode)
    return activation(loc, F.pad(input._variance, pad, mode))


@rule(torch.constant_pad_nd, kind="linear")
def _constant_pad(input: Any, pad: Any, value: float = 0.0) -> Any:
    return _pad(input, pad, value=value)


@rule(F.interpolate, kind="activation")
def _interpolate(input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **kwargs: Any) -> Any:
    if mode not in ("nearest", "nearest-exact"):
        return NotImplemented
    kwargs = {k: v for k, v in kwargs.items() if v is not None}
    return activation(
        F.interpolate(input._loc, size, scale_factor, mode, **kwargs),
        F.interpolate(input._variance, size, scale_factor, mode, **kwargs),
    )


@rule(*ops("where"), kind="activation")
def _where(condition: Any, input: Any = None, other: Any = None) -> Any:
    if isinstance(condition, Moments) or other is None:
        return NotImplemented
    (a, va), (b, vb) = parts(input), parts(other)
    loc = torch.where(condition, a, b)
    zero = loc.new_zeros((), dtype=torch.float32)
    return activation(loc, torch.where(condition, zero if va is None else va, zero if vb is None else vb))


@rule(*ops("masked_fill"), kind="activation")
def _masked_fill(input: Any, mask: Any, value: Any) -> Any:
    if not isinstance(input, Moments) or isinstance(value, Moments):
        return NotImplemented
    return activation(input._loc.masked_fill(mask, value), input._variance.masked_fill(mask, 0.0))


@rule(getter("requires_grad"), kind="consumer")
def _requires_grad(input: Any) -> Any:
    return input._loc.requires_grad or input._variance.requires_grad
