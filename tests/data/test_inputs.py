"""Several inputs per example, from arrays, data sets and loaders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pyrobnn.data import load_data
from pyrobnn.data.inputs import Packing
from pyrobnn.errors import DataError

A, B, C = torch.randn(40, 1, 4, 3), torch.randint(0, 90, (40,)), torch.randint(0, 256, (40, 2), dtype=torch.uint8)
Y = torch.arange(40) % 2


class Items(Dataset[Any]):
    def __init__(self, named: bool) -> None:
        self.named = named

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> Any:
        inputs = (A[row], B[row], C[row])
        return (dict(zip("abc", inputs, strict=True)) if self.named else inputs), int(Y[row])


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", ["arrays", "items", "streamed", "loader", "as it is"])
def test_inputs_come_back_as_they_were(kind: str, named: bool) -> None:
    whole = {"a": A, "b": B, "c": C} if named else (A, B, C)
    loader = DataLoader(Items(named), batch_size=7)
    settings: dict[str, Any] = {"stream": True} if kind in ("streamed", "as it is") else {}
    source: Any = {"arrays": (whole, Y), "loader": loader, "as it is": (loader, loader, loader)}.get(kind, Items(named))
    data = load_data(source, **settings)
    assert data.packing is not None and data.num_classes == 2 and "3 inputs" in data.describe()
    seen = 0
    for x, y in data.train.batches(5, generator=torch.Generator().manual_seed(0)):
        parts = data.packing.unpack(x)
        parts = tuple(parts.values()) if named else parts
        for a, b, c, label in zip(*parts, y, strict=True):
            row = int((a == A).flatten(1).all(1).nonzero()[0, 0])
            assert torch.equal(b, B[row]) and torch.allclose(c * 255, C[row].float()) and label == Y[row]
            assert b.dtype == torch.int64
            seen += 1
    assert seen == len(data.train)


def test_inputs_that_cannot_be_packed() -> None:
    packing = Packing.of((A[0], B[0]))
    for inputs, message in (
        ((A[0], B[:2]), "expected inputs of shapes"),
        ((A[0], B[0] + 2**25), "whole numbers up to 16,777,216"),
    ):
        with pytest.raises(DataError, match=message):
            packing.pack(inputs)
    with pytest.raises(DataError, match="arrays of numbers"):
        Packing.of((A[0], "text"))
    with pytest.raises(DataError, match="single images"):
        load_data(((A, B), Y), image_size=8)
