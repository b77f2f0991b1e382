"""How long forward passes take, and of two networks in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from pyrobnn.errors import ConfigError
from pyrobnn.nets.calling import eval_mode, output_of


def latency_ms(net: nn.Module, example: Tensor, repeats: int = 50, *, warmup: int = 5, batch: int = 1) -> float:
    """Median wall-clock time of one forward pass, in milliseconds.

    Measured in evaluation mode without gradients, on the device of `example` and
    with torch's current number of threads, after `warmup` passes that do not count.

    Args:
        net: a module on the same device as `example`.
        example: images ``[B, C, H, W]``; the first `batch` are used.
        repeats: timed passes, at least 1.
        warmup: untimed passes before them.
        batch: examples per pass. The default, 1, is what ``report.json`` states.
    """
    if repeats < 1 or warmup < 0 or not 1 <= batch <= len(example):
        raise ConfigError(
            f"expected repeats >= 1, warmup >= 0 and 1 <= batch <= {len(example)}, got repeats={repeats}, "
            f"warmup={warmup}, batch={batch}; change the settings or pass a longer example"
        )
    x = example[:batch]
    return 1e3 * statistics.median(_in_turn([net], x, repeats, warmup, stopwatch(x.device, of_day=True))[0])


def relative_latency(net: nn.Module, base: nn.Module, example: Tensor, repeats: int = 30, *, warmup: int = 5) -> float:
    """Time of a forward pass as a share of that of another network: the ratio of medians of passes that take turns.

    What else the machine does falls on both, and does not count at all where :func:`stopwatch` stands still for it.

    Args:
        net, base: modules on the device of `example`.
        example: the batch of every pass.
        repeats: timed passes of each.
        warmup: untimed passes before them.
    """
    one, other = _in_turn([net, base], example, repeats, warmup, stopwatch(example.device))
    return statistics.median(one) / statistics.median(other)


def smallest_batch(net: nn.Module, example: Tensor) -> int:
    """1; or 2 for a network that fails on one example, because a `squeeze()` takes the batch axis away."""
    with eval_mode(net), torch.no_grad():
        try:
            output_of(net, example[:1])
        except (RuntimeError, IndexError, TypeError, ValueError):
            return 2
    return 1


def stopwatch(device: torch.device, *, of_day: bool = False) -> Callable[[], float]:
    """A clock in seconds for work on a device.

    On a CPU with one thread it is the thread's own, which stands still while other processes have the core; elsewhere,
    or with `of_day`, the time of the day, when all work that was sent to the device is done.
    """
    if device.type == "cpu":
        return time.thread_time if torch.get_num_threads() == 1 and not of_day else time.perf_counter
    wait: Callable[[], None] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(
        device.type, lambda: None
    )

    def now() -> float:
        wait()
        return time.perf_counter()

    return now


def _in_turn(
    nets: list[nn.Module], x: Tensor, repeats: int, warmup: int, clock: Callable[[], float]
) -> list[list[float]]:
    """Seconds of each pass but the first ones, net by net."""
    times: list[list[float]] = [[] for _ in nets]
    with ExitStack() as stack, torch.no_grad():
        for net in nets:
            stack.enter_context(eval_mode(net))
        for _ in range(warmup + repeats):
            for net, taken in zip(nets, times, strict=True):
                start = clock()
                output_of(net, x)
                taken.append(clock() - start)
    return [taken[warmup:] for taken in times]
