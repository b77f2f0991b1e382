"""Checks a network before use: one forward pass, and the dtype of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.errors import NetError
from pyrobnn.io.files import first_line
from pyrobnn.nets.calling import eval_mode, output_of


def check_fits(net: nn.Module, example: Tensor, num_classes: int | None = None) -> None:
    """Runs the network once on `example` in eval mode; modes and the random state come back unchanged.

    Args:
        net: Any network.
        example: Images ``[B, C, H, W]``, on the device of the net.
        num_classes: If given, the output must be ``[B, num_classes]``.

    Raises:
        NetError: The images do not fit the net, or its output does not fit the classes, or its parameters are
            not of single precision.
    """
    check_precision(net, (example,))
    entered = "its forward"

    def remember(label: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            nonlocal entered
            entered = label

        return hook

    handles = [
        module.register_forward_pre_hook(remember(label))
        for label, module in net.named_modules()
        if label and not list(module.children())
    ]
    shape = "x".join(str(size) for size in example.shape[1:])
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), eval_mode(net):
            output = output_of(net, example)
    except Exception as error:  # the network is the user's own code
        if isinstance(error, NetError):
            raise
        raise NetError(
            f"images of {shape} do not fit the net at {entered}: {first_line(error)}; "
            "choose a net made for these images, or resize them"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if num_classes is None:
        return
    expected = (len(example), num_classes)
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got != expected:
        raise NetError(
            f"expected logits of shape {expected}, one per class, got {got}: build the net with {num_classes} outputs"
        )


def check_precision(net: nn.Module, args: Iterable[Any]) -> None:
    """Refuses networks of half or double precision for images of another one, and those without values.

    Args:
        net: Any network.
        args: What it is called with; tensors among it count.

    Raises:
        NetError: Names the parameter, and says to call ``.float()``.
    """
    if empty := [name for name, value in net.named_parameters() if value.is_meta]:
        raise NetError(f"parameter {empty[0]!r} has no values (it is on the meta device): load the weights first")
    given = {value.dtype for value in args if isinstance(value, Tensor) and value.is_floating_point()}
    if len(given) != 1:
        return
    for name, value in net.named_parameters():
        if value.is_floating_point() and value.dtype not in given:
            kinds = [str(dtype).removeprefix("torch.") for dtype in (value.dtype, *given)]
            raise NetError(
                f"parameter {name!r} is {kinds[0]}, the images are {kinds[1]}: call net.float() "
                "(training in bf16 is precision='bf16')"
            )
