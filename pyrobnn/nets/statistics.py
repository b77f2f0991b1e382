"""BatchNorm statistics that move once per step, however often a network is called in it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class OncePerStep:
    """Tells the first call of a step from further ones: these have the same batch, and no parameter has moved."""

    def __init__(self) -> None:
        self._last: tuple[Any, int] | None = None

    def is_first(self, net: nn.Module, x: Any, values: Mapping[str, Tensor]) -> bool:
        """Whether this call of `net` on the batch `x`, with `values` in place of tensors of its own, begins a step."""
        # A network whose every parameter is random has none of its own that a step would move: its guide's then.
        own = list(net.parameters())
        step = sum(p._version for p in own or _leaves(values.values()))
        last, self._last = self._last, None
        try:
            self._last = (weakref.ref(x), step)
        except TypeError:
            return True
        return last is None or last[0]() is not x or last[1] != step

    def forget(self) -> None:
        """The next call begins a step, whatever its batch."""
        self._last = None


def tracks_statistics(net: nn.Module) -> bool:
    """Whether a network has BatchNorm layers with running statistics."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in net.modules())


def copied_statistics(net: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the statistics, to be updated in their place; those that `values` replaces stay replaced."""
    copies = {}
    for path, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            for leaf, buffer in module.named_buffers(recurse=False):
                name = f"{path}.{leaf}" if path else leaf
                if leaf in _STATISTICS and values.get(name, buffer) is buffer:
                    copies[name] = buffer.clone()
    return copies


def _leaves(values: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that these tensors were computed from, read off their autograd graphs."""
    nodes = [value.grad_fn for value in values if value.grad_fn is not None]
    seen, found = set(nodes), []
    while nodes:
        node = nodes.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            found.append(leaf)
        fresh = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= fresh
        nodes.extend(fresh)
    return found
