"""Outputs in containers, inputs that stay as they are."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrobnn.errors import NetError
from pyrobnn.nets.calling import main_output, output_of

LOGITS, AUX = torch.zeros(2, 5), torch.ones(2, 5)
Named = namedtuple("Named", "aux logits")


@dataclass
class Data:
    aux: Tensor
    out: Tensor


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, AUX),
        [LOGITS, AUX],
        ((LOGITS, AUX), AUX),
        (None, LOGITS),
        {"aux": AUX, "out": LOGITS},
        OrderedDict(aux=AUX, logits=LOGITS),
        {"first": LOGITS, "second": AUX},
        Named(AUX, LOGITS),
        Data(AUX, LOGITS),
        SimpleNamespace(aux=AUX, logits=LOGITS),
    ],
    ids=lambda output: type(output).__name__,
)
def test_the_main_output(output: Any) -> None:
    assert main_output(output) is LOGITS


@pytest.mark.parametrize("output", [None, (), {}, 3.0, SimpleNamespace(n=1)])
def test_no_tensor_is_refused(output: Any) -> None:
    with pytest.raises(NetError, match="expected a network that returns a tensor"):
        main_output(output)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x.sub_(0.5).mul_(2.0)}


def test_the_batch_stays() -> None:
    x = torch.rand(3, 1, 4, 4)
    before = x.clone()
    assert torch.equal(output_of(InPlace(), x), (before - 0.5) * 2)
    assert torch.equal(x, before)
