"""Times a few steps in fp32 and in bfloat16 for `precision="auto"`, once per network, device and batch."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.io.measured import Measurements
from pyrobnn.nets.calling import output_of, set_mode
from pyrobnn.nets.replica import copy_net

WORTH = 1e8  # multiply-accumulates of a batch from which on a choice of precision is worth its trial
ROUNDS = 3
GAIN = 0.95  # of the time in fp32: bfloat16 must be below
MEASURED = Measurements("precision", lambda times: {name: float(times[name]) for name in ("fp32", "bf16")})


def milliseconds(net: nn.Module, example: Tensor, batch_size: int = 128) -> dict[str, float] | None:
    """Of a step (forward and backward) in `fp32` and `bf16`, for a CPU; None for networks so small that it is no matter.

    The times are kept in the process and in the user's cache folder, by the network's layers whatever their widths (a
    cut network goes on in the precision of the whole one), the shape of the batch, the processor, the number of
    threads and the version of torch: so a resumed run computes in the precision that it began with.

    Args:
        net: on a CPU; it stays as it is.
        example: a few of its inputs, `[n, ...]`.
        batch_size: of the timed steps.
    """
    if multiply_accumulates(net, example) * batch_size < WORTH:
        return None
    x = example.repeat(-(-batch_size // len(example)), *[1] * (example.dim() - 1))
    found: dict[str, float] = MEASURED.once(_what(net, example, batch_size), lambda: _timed(net, x))
    return found


def faster(times: dict[str, float] | None) -> torch.dtype | None:
    """bfloat16 where it gains, else None."""
    return torch.bfloat16 if times is not None and times["bf16"] < GAIN * times["fp32"] else None


@torch.no_grad()
def multiply_accumulates(net: nn.Module, example: Tensor) -> float:
    """Of convolutions and linear layers, for one input."""
    found: list[float] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        found.append(output.numel() * weight[0].numel() / len(example))

    scratch = set_mode(copy_net(net), False).cpu()
    for module in scratch.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            module.register_forward_hook(count)
    output_of(scratch, example.cpu())
    return sum(found)


def _timed(net: nn.Module, x: Tensor) -> dict[str, float]:
    scratch = set_mode(copy_net(net), True).cpu()
    if x.dim() == 4:
        scratch, x = scratch.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    best = {"fp32": float("inf"), "bf16": float("inf")}
    with torch.random.fork_rng(devices=[]):
        for _ in range(ROUNDS + 1):  # the first round sets up kernels; the least of a kind is what others disturb least
            for name in best:
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, name == "bf16"):
                    loss = output_of(scratch, x).float().square().mean()
                loss.backward()
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return {name: round(value, 3) for name, value in best.items()}


def _what(net: nn.Module, example: Tensor, batch_size: int) -> Any:
    layers = [
        (type(m).__name__, getattr(m, "kernel_size", None), getattr(m, "stride", None), getattr(m, "groups", 1) == 1)
        for m in net.modules()
    ]
    return layers, tuple(example.shape[1:]), batch_size
