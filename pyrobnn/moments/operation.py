"""`register_operation`: the channel rule and the moment rule of an unknown operation in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_leaves

from pyrobnn.channels.calls import operation_name
from pyrobnn.channels.rules_math import elementwise
from pyrobnn.channels.tracer import RULES as CHANNEL_RULES
from pyrobnn.channels.tracer import Rule as ChannelRule
from pyrobnn.errors import ConfigError
from pyrobnn.moments.registry import RULES as MOMENT_RULES
from pyrobnn.moments.registry import ops, rule
from pyrobnn.moments.rules_activation import smooth

F = TypeVar("F", bound=Callable[..., Any])
MomentRule = Callable[..., Any]


def register_operation(
    function: F,
    *,
    channels: ChannelRule | Literal["elementwise"],
    moments: MomentRule | Literal["elementwise"] | None = None,
) -> F:
    """Register the channel rule and the moment rule of an operation, together.

    Args:
        function: a torch function (all its forms count: ``torch.f``, ``F.f``, ``Tensor.f``, ``f_``), or a Python
            function of your own, such as one that calls a compiled kernel or an `autograd.Function`.
        channels: ``"elementwise"`` if every output number depends on the input number in its place alone; else a rule
            ``(tracer, call)`` that gives ``call.out`` its channel labels (see :mod:`pyrobnn.channels.tracer`).
            What a rule says is tried like everything else: a wrong one leads to a refusal, not to a wrong cut.
        moments: ``"elementwise"`` integrates the function over a Gaussian input by Gauss–Hermite quadrature; a rule
            gets the call's arguments, random ones as :class:`~pyrobnn.moments.Moments`, and returns a `Moments` or a
            tensor. None: with ``estimator="moments"`` activations that meet the operation are refused.

    Returns:
        `function` for torch's own; for yours the function to call in `forward` in its place.

    Raises:
        ConfigError: a rule of the wrong kind.

    >>> import pyrobnn as pb
    >>> squash = pb.register_operation(lambda x: x / (1 + x.abs()), channels="elementwise", moments="elementwise")
    >>> squash(torch.tensor([1.0, -3.0]))
    tensor([ 0.5000, -0.7500])
    """
    for what, given in (("channels", channels), ("moments", moments)):
        if not callable(given) and given != "elementwise" and not (what == "moments" and given is None):
            raise ConfigError(f"expected {what}='elementwise' or a function, got {given!r}")
    is_torch = function in torch.overrides.get_testing_overrides()
    operation: Any = function if is_torch else _visible(function)
    forms = _forms(function) if is_torch else (operation,)
    CHANNEL_RULES[operation_name(function) if is_torch else operation] = channels if callable(channels) else elementwise
    for form in forms:
        MOMENT_RULES.pop(form, None)  # of an earlier call
    if moments is not None:
        rule(*forms)(moments if callable(moments) else _quadrature(function))
    return operation


def _forms(function: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    try:
        return tuple({*ops(operation_name(function)), function})
    except AssertionError:  # of a submodule, such as torch.special
        return (function,)


def _visible(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one operation, for everything that looks at operations."""

    @functools.wraps(function)
    def operation(*args: Any, **kwargs: Any) -> Any:
        tensors = tuple(part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor))
        if has_torch_function(tensors):
            return handle_torch_function(operation, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return operation


def _quadrature(function: Callable[..., Any]) -> MomentRule:
    def apply(x: Any, *args: Any, **kwargs: Any) -> Any:
        return smooth(x, lambda value: torch.as_tensor(function(value, *args, **kwargs)))

    return apply
