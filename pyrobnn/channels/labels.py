"""Channel labels: identities of channels, which of them must be cut together, and tensors of labels.

A label is a small integer. Every output channel of a convolution gets a fresh one; operations that force two
channels to be cut together unite their labels. A *label tensor* has the shape of an activation and says which
label each number carries; along axes where the label does not change it is expanded (stride 0), so it costs
no memory and moves through ``view``, ``cat`` or ``permute`` exactly as the numbers do.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Ledger:
    """Union-find over labels, with a reason for classes that cannot be cut."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """`count` new labels."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        """The representative of a label's class."""
        parent = self._parent
        root = label
        while parent[root] != root:
            root = parent[root]
        while parent[label] != root:
            parent[label], label = root, parent[label]
        return root

    def union(self, first: Tensor, second: Tensor) -> None:
        """Tie labels position by position (broadcasting)."""
        if first is second:
            return
        first, second = torch.broadcast_tensors(first, second)
        for a, b in set(zip(first.reshape(-1).tolist(), second.reshape(-1).tolist(), strict=True)):
            a, b = self.find(a), self.find(b)
            if a == b:
                continue
            a, b = min(a, b), max(a, b)
            self._parent[b] = a
            reason = self._reason.pop(b, None)
            if reason is not None:
                self._reason.setdefault(a, reason)

    def lock(self, labels: Tensor, reason: str) -> None:
        """Forbid cutting these classes; the first reason stays."""
        for label in set(labels.reshape(-1).tolist()):
            self._reason.setdefault(self.find(label), reason)

    def reason(self, label: int) -> str | None:
        """Why the class cannot be cut, or None."""
        return self._reason.get(self.find(label))

    def any_locked(self, labels: Iterable[int]) -> bool:
        """Whether one of the classes cannot be cut."""
        return any(self.reason(label) is not None for label in labels)

    def roots(self, labels: Tensor) -> Tensor:
        """Every label replaced by the representative of its class."""
        values, inverse = labels.unique(return_inverse=True)
        found = torch.tensor([self.find(label) for label in values.tolist()], dtype=torch.int64)
        return found[inverse]


def shrunk(labels: Tensor) -> Tensor:
    """The label tensor with every axis along which nothing changes cut to length one."""
    for axis in range(labels.dim()):
        if labels.shape[axis] > 1:
            first = labels.narrow(axis, 0, 1)
            if labels.stride(axis) == 0 or bool((labels == first).all()):
                labels = first
    return labels


def varying(labels: Tensor) -> tuple[int, ...]:
    """Axes along which a shrunk label tensor changes."""
    return tuple(axis for axis, size in enumerate(labels.shape) if size > 1)
