"""Networks of several inputs as networks of one tensor."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyrobnn.nets.adapter import adapted, released
from pyrobnn.nets.calling import output_of


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return {"aux": a, "out": self.fc(torch.cat([a, b], 1))}


def test_a_tuple_is_its_arguments_and_a_dict_its_keywords() -> None:
    net = Two()
    a, b = torch.randn(5, 2), torch.randn(5, 2)
    expected, names = net(a, b)["out"], list(net.state_dict())
    assert torch.equal(output_of(net, (a, b)), expected)
    packed = torch.cat([a, b], 1)
    for unpack in (lambda x: (x[:, :2], x[:, 2:]), lambda x: {"b": x[:, 2:], "a": x[:, :2]}):
        single = adapted(copy.deepcopy(net), unpack)
        assert list(single.state_dict()) == names and type(single).__name__ == "Two" and isinstance(single, Two)
        assert torch.equal(output_of(single, packed), expected)
        twin = copy.deepcopy(single)
        other = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
        assert functional_call(twin, other, (packed,))["out"].abs().max() == 0
        assert type(released(single)) is Two and torch.equal(single(a, b)["out"], expected)


def test_a_call_of_its_own() -> None:
    net = Two()
    a = torch.randn(5, 2)
    expected = net(a, a)["out"]
    single = adapted(copy.deepcopy(net), None, lambda net, x: net(x, x)["out"])
    assert torch.equal(single(a), expected)
    inner = adapted(copy.deepcopy(net), None, lambda net, x: net.fc(torch.cat([x, x], 1)))
    assert torch.equal(inner(a), expected)
