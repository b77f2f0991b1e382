"""Copies of networks as users write them share nothing with the original, or are refused by name."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from pyrobnn.errors import NetError
from pyrobnn.nets.replica import copy_net, unwrap


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(32, 5))


class Keeps(nn.Module):
    """Keeps an activation, in the way that is given."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how, self.kept = plain(), how, {}

    def forward(self, x: Tensor) -> Tensor:
        features = self.body[:3](x)
        if self.how == "attribute":
            self.features = features
        elif self.how == "list":
            self.all_features = [features, {"again": features}]
        else:
            self.kept[self.how] = features
        return self.body[3:](features)


def hooked(make: Callable[[nn.Module, list[Tensor]], Any]) -> nn.Module:
    net, store = plain(), []
    net.store = store
    net[0].register_forward_hook(make(net, store))
    return net


class Function(nn.Module):
    """An attribute that is a function of the module itself."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body = plain()
        if how == "closure":
            self.run = lambda x: self.body(x)
        elif how == "default":
            self.run = lambda x, me=self: me.body(x)
        elif how == "partial":
            self.run = functools.partial(lambda net, x: net.body(x), self)
        elif how == "method":
            self.run = self.later
        else:
            inner = lambda x: self.body(x)  # noqa: E731
            self.run = lambda x: inner(x)

    def later(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def with_lock(lock: Any) -> nn.Module:
    net = plain()
    net.lock = lock
    return net


def pruned() -> nn.Module:
    net = plain()
    prune.l1_unstructured(net[2], "weight", 0.5)
    return net


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    net = plain()
    norm(net[2])
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: normed(nn.utils.weight_norm),
    "spectral_norm": lambda: normed(nn.utils.spectral_norm),
    "parametrized": lambda: normed(nn.utils.parametrizations.weight_norm),
    "prune": pruned,
    **{f"keeps, {how}": functools.partial(Keeps, how) for how in ("attribute", "list", "dict")},
    "hook with a list": lambda: hooked(lambda net, store: lambda m, i, o: store.append(o)),
    "hook with the network": lambda: hooked(lambda net, store: lambda m, i, o: o + 0 * net[2].weight.sum()),
    "hook that is a method": lambda: hooked(
        lambda net, store: functools.partial(lambda s, m, i, o: s.append(o), store)
    ),
    **{
        f"function, {how}": functools.partial(Function, how)
        for how in ("closure", "default", "partial", "method", "nested")
    },
    "lock": lambda: with_lock(threading.Lock()),
    "re-entrant lock": lambda: with_lock({"lock": [threading.RLock()]}),
    "event": lambda: with_lock(threading.Event()),
    "thread-local": lambda: with_lock(threading.local()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", NETS)
def test_a_copy_shares_nothing(name: str) -> None:
    net, x = NETS[name](), torch.randn(2, 1, 6, 6)
    net(x).sum().backward()  # it was trained before
    net.eval()
    twin = copy_net(net)
    before = net(x)
    stored = len(getattr(net, "store", ()))
    assert torch.allclose(twin(x), before, atol=1e-6)
    assert len(getattr(net, "store", ())) == stored
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2.0).add_(0.1)
    assert torch.allclose(net(x), before, atol=1e-6)
    assert not torch.allclose(twin(x), before, atol=1e-3)  # it is the copy's weights that count


def generator_in_a_layer() -> nn.Module:
    net = plain()
    net[2].stream = (n for n in range(3))
    return net


def test_what_cannot_be_copied_is_named() -> None:
    with pytest.raises(NetError, match=r"attribute 'stream' \(generator\) of 2 \(Conv2d\)"):
        copy_net(generator_in_a_layer())
    with pytest.raises(NetError, match=r"'0.weight' has no shape yet: call the network once"):
        copy_net(nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU()))


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "compile": torch.compile,
    "compile of DataParallel": lambda net: torch.compile(nn.DataParallel(net)),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("inside", [False, True])
def test_wrappers_are_taken_off(name: str, inside: bool) -> None:
    net, x = plain(), torch.randn(2, 1, 6, 6)
    wrapped = nn.Sequential(WRAPPED[name](net)) if inside else WRAPPED[name](net)
    copied = copy_net(wrapped)
    prefix = "0." if inside else ""
    assert [n for n, _ in copied.named_parameters()] == [prefix + n for n, _ in net.named_parameters()]
    assert torch.equal(copied(x), net(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_what_is_no_module_any_more_is_refused() -> None:
    x = torch.randn(2, 1, 6, 6)
    for net in (torch.jit.script(plain()), torch.jit.trace(plain(), x)):
        with pytest.raises(NetError, match="TorchScript"):
            unwrap(net)
    with pytest.raises(NetError, match="exported program"):
        unwrap(torch.export.export(plain(), (x,)).module())
