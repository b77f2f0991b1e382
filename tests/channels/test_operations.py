"""Operations that keep channels apart in their own way: each is cut, and mask equals compact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from pyrobnn.channels import ChannelTable, channel_groups


class Between(nn.Module):
    """A stem of 8 channels, an operation, and a head; the stem's channels must be cut."""

    def __init__(self, operation: Callable[[nn.Module, Tensor], Tensor], out: int = 8, **parts: object) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.operation, self.head = operation, nn.Linear(out, 5)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(self, self.stem(x)).mean((2, 3)))


def masked(mask: str) -> nn.Conv2d:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    prune.random_unstructured(layer, "weight", 0.5) if mask == "some" else prune.identity(layer, "weight")
    return layer


class Cast(nn.Conv2d):
    """Weights that are cast before use, as for mixed precision by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=1)


class Scaled(nn.BatchNorm2d):
    """Gamma as 1 + weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, 1 + self.weight, self.bias, False)


class Maps(nn.Module):
    """Features made into maps."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.features, self.maps = nn.Linear(8, 6 * 9), nn.Unflatten(1, sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(self.features(x.mean((2, 3))))


def parts_of(net: nn.Module, x: Tensor) -> Tensor:
    a, b = torch.split(x, net.sizes, 1)
    return torch.cat([b, net.left(a)], 1)


def parts_joined(net: nn.Module, parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([net.left(parts[0]), parts[1]], 1)


def scales_of(net: nn.Module, x: Tensor) -> Tensor:
    parts = torch.split(x, net.width, 1)
    return torch.cat([parts[0], *(net.shared(part) for part in parts[1:])], 1)


def halves_of(net: nn.Module, x: Tensor) -> Tensor:
    """Kernels of two sizes on half of the channels each, as in selective kernels."""
    a, b = torch.split(x, net.channels // 2, 1)
    return net.left(a) + net.right(b)


class Blur(nn.Module):
    """A fixed depthwise filter that is no convolution layer; it holds the number of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("filter", torch.rand(1, 1, 3, 3).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filter, padding=1, groups=self.channels)


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao 2019): each filter is used with mean 0 and variance 1."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias)


class Attended(nn.Module):
    """Efficient channel attention (Wang 2020): a 1-D convolution over the means of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]


CUT: dict[str, Callable[[], nn.Module]] = {
    "group norm": lambda: Between(lambda net, x: net.norm(x).relu(), norm=nn.GroupNorm(4, 8)),
    "group norm, one channel each": lambda: Between(lambda net, x: net.norm(x).relu(), norm=nn.GroupNorm(8, 8)),
    "hstack": lambda: Between(lambda net, x: torch.hstack([x, x.relu()]), 16),
    "column_stack": lambda: Between(
        lambda net, x: torch.column_stack([x.mean((2, 3)), x.amax((2, 3))])[..., None, None], 16
    ),
    "vstack of halves of the batch": lambda: Between(lambda net, x: torch.vstack([x[:1], x[1:]]).tanh()),
    "glu over channels": lambda: Between(lambda net, x: F.glu(x, 1), 4),
    "glu over space": lambda: Between(lambda net, x: F.glu(x, 2)),
    "unflatten, open": lambda: Between(lambda net, x: x.unflatten(1, (2, -1)).amax(1), 4),
    "unflatten by name": lambda: Between(lambda net, x: x.unflatten(dim=1, sizes=(-1, 2)).sum(2), 4),
    "unflatten module": lambda: Between(lambda net, x: net.un(x).amax(1), 4, un=nn.Unflatten(1, (2, 4))),
    "features made into maps": lambda: Between(lambda net, x: net.maps(x), 6, maps=Maps((6, 3, 3))),
    "features made into open maps": lambda: Between(lambda net, x: net.maps(x), 6, maps=Maps((-1, 3, 3))),
    "parameter [C, H, W]": lambda: Between(lambda net, x: x + net.p, p=nn.Parameter(torch.rand(8, 8, 8))),
    "parameter [1, C, H, W]": lambda: Between(lambda net, x: x * net.p, p=nn.Parameter(torch.rand(1, 8, 8, 8))),
    "parameter [H, W, C]": lambda: Between(
        lambda net, x: x * net.p.permute(2, 0, 1).sigmoid(), p=nn.Parameter(torch.rand(8, 8, 8))
    ),
    "parameter [C, 3]": lambda: Between(
        lambda net, x: x * net.p[None, :, None, None, :].expand(1, -1, 1, 1, -1).mean(-1).tanh() + x,
        p=nn.Parameter(torch.rand(8)[:, None]),
    ),
    "prune": lambda: Between(lambda net, x: net.c(x).relu(), c=masked("some")),
    "prune of nothing": lambda: Between(lambda net, x: net.c(x).relu(), c=masked("none")),
    "weights that are cast": lambda: Between(lambda net, x: net.c(x).relu(), c=Cast(8, 8, 3)),
    "gamma that is computed": lambda: Between(lambda net, x: net.c(x).relu(), c=Scaled(8)),
    "unequal split": lambda: Between(parts_of, sizes=[3, 5], left=nn.Conv2d(3, 3, 1)),
    "unequal split of a tuple": lambda: Between(parts_of, sizes=(6, 2), left=nn.Conv2d(6, 6, 1)),
    "split by a width": lambda: Between(scales_of, width=2, shared=nn.Conv2d(2, 2, 1)),
    "unequal split by two attributes": lambda: Between(
        lambda net, x: parts_joined(net, torch.split(x, [net.part, net.rest], 1)),
        part=3,
        rest=5,
        left=nn.Conv2d(3, 3, 1),
    ),
    "split by half of a width": lambda: Between(
        halves_of, 6, channels=8, left=nn.Conv2d(4, 6, 1), right=nn.Conv2d(4, 6, 3, padding=1)
    ),
    "filter that counts channels": lambda: Between(lambda net, x: net.blur(x), blur=Blur(8)),
    "by keywords": lambda: Between(
        lambda net, x: torch.cat(tensors=[F.relu(input=x), torch.flip(input=net.n(input=x), dims=(2,))], dim=1),
        16,
        n=nn.BatchNorm2d(8),
    ),
    "transposed by keywords": lambda: Between(
        lambda net, x: net.l(torch.permute(input=x, dims=(0, 2, 3, 1))).movedim(-1, 1), l=nn.Linear(8, 8)
    ),
    "constants of the maps' shape": lambda: Between(
        lambda net, x: x * torch.full(x.shape[1:], 0.5).to(x) + x.new_ones(x.shape)
    ),
    "features times a parameter": lambda: Between(
        lambda net, x: (x.movedim(1, -1) @ net.p).movedim(-1, 1), p=nn.Parameter(torch.randn(8, 8))
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_cut_exactly(name: str, exact: Callable[..., ChannelTable]) -> None:
    table = exact(CUT[name](), torch.randn(3, 3, 8, 8), macs=True)
    assert "stem" in table, table.refused


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("group norm", 4),
        ("glu over channels", 4),
        ("unflatten module", 4),
        ("split by a width", 2),
        ("split by half of a width", 4),
        ("filter that counts channels", 8),
        ("unequal split", 8),
    ],
)
def test_units(name: str, units: int) -> None:
    assert channel_groups(CUT[name](), torch.randn(2, 3, 8, 8))["stem"].channels == units


RANDOM: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "dropout": lambda net, x: F.dropout(x, 0.5, training=True),
    "dropout of whole maps": lambda net, x: F.dropout2d(x, 0.5, training=True),
    "noise of the maps' shape": lambda net, x: x + 0.1 * torch.randn(x.shape),
    "noise like the maps": lambda net, x: x + 0.1 * torch.randn_like(x),
    "noise in place": lambda net, x: x * torch.empty_like(x).bernoulli_(0.7),
    "noise of one map": lambda net, x: x + torch.rand(len(x), 1, *x.shape[2:]),
    "drop path": lambda net, x: x + x.relu() * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5).div_(0.5),
    "gumbel": lambda net, x: F.gumbel_softmax(x.flatten(2), dim=-1).view_as(x),
}


@pytest.mark.parametrize("name", RANDOM)
def test_noise_in_eval_mode_does_not_hide_what_can_be_cut(name: str) -> None:
    table = channel_groups(Between(RANDOM[name]), torch.randn(2, 3, 8, 8))
    assert table.names == ["stem"], table.refused


def test_noise_that_cannot_be_frozen_is_named() -> None:
    import random

    table = channel_groups(Between(lambda net, x: x + random.random()), torch.randn(2, 3, 8, 8))
    assert "different outputs for one input" in table.refused["stem"]


COMPUTED = {
    "weight_norm": nn.utils.weight_norm,
    "weight_norm as a parametrization": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "standardised": lambda layer: Standardised(8, 8, 3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_macs_of_computed_weights_are_counted(name: str) -> None:
    from pyrobnn.report.cost import count

    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), COMPUTED[name](nn.Conv2d(8, 8, 3)), nn.Flatten(), nn.Linear(32, 5)
    )
    x = torch.randn(2, 3, 8, 8)
    net(x).sum().backward()
    table = channel_groups(net, x)
    assert table.names == ["0"]
    assert table.cost().macs == count(net, x).macs
    assert "computed" in table.refused["1"] and "computed" in table.refused["2"]


def test_attention_of_neighbours_is_refused_by_name_and_counted() -> None:
    from pyrobnn.report.cost import count

    net, x = Between(lambda net, x: net.outer(net.attended(net.inner(x))), attended=Attended(), inner=nn.Conv2d(8, 6, 1),
                     outer=nn.Conv2d(6, 8, 1)), torch.randn(2, 3, 8, 8)  # fmt: skip
    table = channel_groups(net, x)
    assert set(table.names) == {"stem", "outer"}
    assert (
        "conv1d slides over channels" in table.refused["inner"] and "attended.conv (Conv1d)" in table.refused["inner"]
    )
    assert table.cost().macs == count(net, x).macs
