"""Several inputs per example, packed into one tensor because the rest of the package moves one tensor per batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyrobnn.errors import DataError

_EXACT = 1 << 24  # whole numbers up to here are exact in single precision


@dataclass(frozen=True)
class Packing:
    """How the inputs of one example lie in a vector of F floats.

    Attributes:
        names: Keys of the inputs where examples are dicts; empty where they are tuples.
        shapes: Of each input, without the batch axis.
        kinds: Dtypes, as in ``"float32"``.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, inputs: Any, batched: bool = False) -> Packing:
        """The packing of one example, or of a batch.

        Raises:
            DataError: An input that is no array of numbers.
        """
        names = tuple(map(str, inputs)) if isinstance(inputs, Mapping) else ()
        tensors = [_tensor(part) for part in (inputs.values() if isinstance(inputs, Mapping) else inputs)]
        if not tensors:
            raise DataError("expected at least one input per example, got none")
        shapes = tuple(tuple(part.shape[1:] if batched else part.shape) for part in tensors)
        return cls(names, shapes, tuple(str(part.dtype).removeprefix("torch.") for part in tensors))

    def __len__(self) -> int:
        return len(self.shapes)

    def pack(self, inputs: Any, batched: bool = False) -> Tensor:
        """A vector ``[1, F]`` of one example, or ``[B, 1, F]`` of a batch; float32.

        Raises:
            DataError: Inputs that differ from the first ones, or whole numbers that single precision cannot hold.
        """
        if isinstance(inputs, Mapping):
            inputs = [inputs.get(name) for name in self.names]
        tensors = [_tensor(part) for part in inputs]
        shapes = tuple(tuple(part.shape[1:] if batched else part.shape) for part in tensors)
        if shapes != self.shapes:
            raise DataError(
                f"expected inputs of shapes {list(self.shapes)} as in the first example, got {list(shapes)}"
            )
        for part in tensors:
            if not part.is_floating_point() and part.numel() and int(part.abs().max()) > _EXACT:
                raise DataError(f"expected whole numbers up to {_EXACT:,} as inputs, got {int(part.abs().max()):,}")
        axis = 1 if batched else 0
        flat = [
            part.to(torch.float32).flatten(axis) if part.ndim > axis else part.to(torch.float32).unsqueeze(axis)
            for part in tensors
        ]
        return torch.cat(flat, axis).unsqueeze(axis)

    def unpack(self, packed: Tensor) -> Any:
        """The inputs ``[B, ...]`` of a packed batch ``[B, 1, F]``: a tuple, or a dict by name; uint8 as floats 0-1."""
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        parts = []
        for part, shape, kind in zip(packed.flatten(1).split(sizes, 1), self.shapes, self.kinds, strict=True):
            part = part.reshape(len(packed), *shape)
            if kind == "uint8":
                part = part / 255
            elif not kind.startswith(("float", "bfloat", "double", "half")):
                part = part.to(getattr(torch, kind))
            parts.append(part)
        return dict(zip(self.names, parts, strict=True)) if self.names else tuple(parts)


class PackedDataset(Dataset[Any]):
    """A data set whose items ``(inputs, target)`` have several inputs, as one that gives vectors."""

    def __init__(self, dataset: Any, packing: Packing) -> None:
        self.dataset, self.packing = dataset, packing

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Tensor, Any]:
        inputs, target = self.dataset[row]
        return self.packing.pack(inputs), target


def several(inputs: Any) -> bool:
    """Whether an example has several inputs, or inputs by name."""
    return isinstance(inputs, Mapping | tuple | list)


def _tensor(part: Any) -> Tensor:
    if isinstance(part, Tensor):
        return part.detach().cpu()
    array = np.asarray(part)
    if array.dtype.kind not in "biuf":
        raise DataError(f"expected inputs that are arrays of numbers, got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array))
