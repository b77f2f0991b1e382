"""Calls with other tensors than the network's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import pyrobnn as pb
from pyrobnn.errors import NetError
from pyrobnn.nets.functional import call_with


class Named(nn.Module):
    """A layer with two names, and a weight with two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.first = self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = self.again = nn.BatchNorm2d(8)
        self.head, self.tied = nn.Linear(8, 10), nn.Linear(8, 10)
        self.tied.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(self.stem(x)).relu())
        x = self.again(self.second(x).relu()).mean((2, 3))
        return self.head(x) + self.tied(x)


def own(net: nn.Module) -> dict[str, int]:
    tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    return {name: id(tensor) for name, tensor in tensors}


@pytest.mark.parametrize("names", [dict, lambda values: {n.replace("first", "second"): v for n, v in values.items()}])
def test_every_place_sees_the_given_tensor_and_gets_its_own_back(names: Callable[..., dict[str, Tensor]]) -> None:
    net, other = Named().eval(), Named().eval()
    x, before = torch.randn(2, 1, 6, 6), own(net)
    values = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    assert torch.equal(call_with(net, names(values), (x,)), other(x))
    assert own(net) == before
    with pytest.raises(RuntimeError):
        call_with(net, {"stem.weight": torch.ones(2, 2)}, (x,))
    assert own(net) == before


def test_as_torch_does_it_with_gradients_and_under_vmap() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).eval()
    values = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    x = torch.randn(5, 1, 4, 4)
    for call in (call_with, functional_call):

        def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
            return call(net, values, (x[None],)).square().sum()  # noqa: B023

        found = vmap(grad(loss), in_dims=(None, 0))(values, x)
        if call is call_with:
            first = found
    assert all(torch.equal(first[name], found[name]) for name in values)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(NetError, match="got 'wieght'"):
        call_with(nn.Linear(1, 1), {"wieght": torch.ones(1, 1)}, (torch.ones(1),))


class Asks(nn.Module):
    """A forward pass that asks its first parameter for the precision; it has none that is not random."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, bias=False), nn.Linear(4, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.to(next(self.parameters()).dtype)).mean((2, 3)))


class Looks(Asks):
    """One that goes through all of its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + sum(p.square().sum() for p in self.parameters()))


def test_random_tensors_are_parameters_to_the_forward_pass() -> None:
    net, x = Looks(), torch.randn(2, 1, 6, 6)
    model = pb.BayesianModel(net, pb.priors.Gaussian("fan_in"), data_size=2)
    assert not list(model.parameters())
    drawn = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    with torch.no_grad():
        got = model.call_net(model.bare_net, drawn, x)
        wanted = functional_call(net, drawn, (x,))
    assert torch.equal(got, wanted)
    assert not list(model.parameters()) and [n for n, _ in model.net.named_buffers()] == ["conv.weight", "head.weight"]
    plain = model.deterministic(drawn)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in net.named_parameters()]
    assert vars(plain.conv).keys() == vars(net.conv).keys()


@pytest.mark.parametrize("make", [Named, Asks])
def test_a_run(make: Callable[[], nn.Module]) -> None:
    from dataclasses import replace

    full = pb.load_data("digits")
    few = replace(full, train=full.train.take(60), valid=full.valid.take(30), test=full.test.take(30))
    net = make()
    before = own(net)
    result = pb.compress(net, few, "gaussian", trained=True, target_macs=0.8, epochs=2, progress=False)
    assert result.report["dense"]["params"] == sum(p.numel() for p in net.parameters())
    assert own(net) == before and all(type(p) is nn.Parameter for p in result.compact.parameters())
    if make is Named:
        assert (
            result.compact.first is result.compact.second and result.compact.tied.weight is result.compact.head.weight
        )
