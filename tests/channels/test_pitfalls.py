"""Small networks, one for every way to read the channels wrongly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.channels import ChannelTable, channel_groups


def conv(i: int, o: int, k: int = 3, **kw: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, **kw), nn.BatchNorm2d(o), nn.ReLU())


class Wrapped(nn.Module):
    """A stem of 8 channels, something in between, and a head."""

    def __init__(self, between: int = 8, space: int = 1) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.space = space
        self.head = nn.Linear(between * space * space, 5)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x))
        return self.head(F.adaptive_avg_pool2d(x, self.space).flatten(1))


class PaddedShortcut(Wrapped):
    """Option A of the CIFAR ResNets, written with F.pad."""

    def __init__(self) -> None:
        super().__init__(16)
        self.body = nn.Sequential(conv(8, 16), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + F.pad(x, (0, 0, 0, 0, 4, 4)))


class ZerosShortcut(Wrapped):
    """Option A, written with a concatenation of zeros."""

    def __init__(self) -> None:
        super().__init__(16)
        self.body = conv(8, 16)

    def middle(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(x.shape[0], 8, *x.shape[2:], dtype=x.dtype)
        return self.body(x) + torch.cat([x, zeros], 1)


class ConcatFlatten(Wrapped):
    def __init__(self) -> None:
        super().__init__(14, space=2)
        self.left, self.right = conv(8, 6), conv(8, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], dim=1)


class Grouped(Wrapped):
    """Three grouped convolutions: by whole groups, by offsets, and with other numbers in and out."""

    def __init__(self, groups: int, out: int) -> None:
        super().__init__(12)
        self.body = nn.Sequential(conv(8, out, groups=groups), conv(out, 12, 1))

    def middle(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class GroupedShortcut(Wrapped):
    def __init__(self) -> None:
        super().__init__(8)
        self.body = nn.Sequential(conv(8, 8, groups=2), conv(8, 8, groups=4))

    def middle(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class SharedConv(Wrapped):
    def __init__(self) -> None:
        super().__init__(8)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def middle(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = F.relu(norm(self.shared(x)))
        return x


class SharedBranches(Wrapped):
    """One convolution over two feature maps of different origin."""

    def __init__(self) -> None:
        super().__init__(12)
        self.left, self.right, self.shared = conv(8, 6), conv(8, 6), nn.Conv2d(6, 6, 1)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([self.shared(self.left(x)), self.shared(self.right(x)).sigmoid()], 1)


class Shuffle(Wrapped):
    def __init__(self) -> None:
        super().__init__(12)
        self.a, self.b, self.c = conv(8, 12, 1), conv(12, 12, groups=12), conv(12, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.a(x)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.c(self.b(x))


class Chunks(Wrapped):
    def __init__(self, way: str) -> None:
        super().__init__(12)
        self.a, self.left, self.way = conv(8, 12, 1), conv(6, 6), way

    def middle(self, x: Tensor) -> Tensor:
        x = self.a(x)
        half = x.shape[1] // 2
        if self.way == "chunk":
            x, y = x.chunk(2, dim=1)
        elif self.way == "split":
            x, y = torch.split(x, half, 1)
        else:
            x, y = x[:, :half], x[:, half:]
        return torch.cat([self.left(x), y], 1)


class Squeeze(Wrapped):
    def __init__(self) -> None:
        super().__init__(8)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class SpatialAttention(Wrapped):
    """A map of one channel, from a convolution with one output, scales all channels."""

    def __init__(self) -> None:
        super().__init__(8)
        self.one, self.back = nn.Conv2d(8, 1, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        weight = self.one(x)
        return x * torch.sigmoid(weight) + self.back(weight)


class OneOutput(Wrapped):
    """A convolution with one output channel and groups=1 looks like a depthwise one."""

    def __init__(self) -> None:
        super().__init__(8)
        self.down, self.up = conv(8, 1), conv(1, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Transposed(Wrapped):
    def __init__(self, groups: int, out: int) -> None:
        super().__init__(6)
        self.up = nn.ConvTranspose2d(8, out, 2, stride=2, groups=groups)
        self.norm, self.last = nn.InstanceNorm2d(out, affine=True, track_running_stats=True), conv(out, 6)

    def middle(self, x: Tensor) -> Tensor:
        return self.last(F.elu(self.norm(self.up(x))))


class PerChannelParameters(Wrapped):
    """PReLU, layer scale and a learned shift."""

    def __init__(self) -> None:
        super().__init__(8)
        self.prelu = nn.PReLU(8)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.shift = nn.Parameter(torch.rand(1, 8, 1, 1))
        self.register_buffer("mean", torch.rand(8))

    def middle(self, x: Tensor) -> Tensor:
        x = self.prelu(x - self.mean[:, None, None])
        return x * self.scale.view(1, -1, 1, 1) + self.shift


class Moved(Wrapped):
    """Channels that travel: permuted to the back, through a linear layer, stacked, interpolated."""

    def __init__(self) -> None:
        super().__init__(10)
        self.mix = nn.Linear(8, 10)
        self.side = nn.Conv2d(8, 10, 1)

    def middle(self, x: Tensor) -> Tensor:
        tokens = self.mix(x.flatten(2).transpose(1, 2))
        back = tokens.mT.unflatten(2, x.shape[2:])
        side = F.interpolate(F.max_pool2d(self.side(x), 2), scale_factor=2.0)
        return torch.stack([back, side]).amax(0) + torch.maximum(back, side)


class PixelShuffle(Wrapped):
    def __init__(self) -> None:
        super().__init__(4)
        self.up = nn.Conv2d(8, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.up(x), 2)


def sequential(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(3, 8), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


NETS: dict[str, Callable[[], nn.Module]] = {
    "padded shortcut": PaddedShortcut,
    "shortcut with zeros": ZerosShortcut,
    "concat and flatten": ConcatFlatten,
    "grouped, whole groups": lambda: Grouped(4, 16),
    "grouped, offsets": lambda: Grouped(2, 12),
    "grouped, two in one shortcut": GroupedShortcut,
    "depthwise": lambda: Grouped(8, 8),
    "depthwise with multiplier": lambda: Grouped(8, 24),
    "shared conv in sequence": SharedConv,
    "shared conv on two branches": SharedBranches,
    "channel shuffle": Shuffle,
    "chunk": lambda: Chunks("chunk"),
    "split": lambda: Chunks("split"),
    "slices": lambda: Chunks("slices"),
    "squeeze and excite": Squeeze,
    "spatial attention": SpatialAttention,
    "one output": OneOutput,
    "dilated": lambda: sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2, stride=2), nn.GELU()),
    "reflection padding": lambda: sequential(nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3), nn.Hardswish()),
    "transposed": lambda: Transposed(1, 6),
    "transposed, whole groups": lambda: Transposed(4, 8),
    "transposed, offsets": lambda: Transposed(2, 8),
    "per-channel parameters": PerChannelParameters,
    "moved axes": Moved,
    "pixel shuffle": PixelShuffle,
    "shuffle module": lambda: sequential(conv(8, 8), nn.ChannelShuffle(2), conv(8, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_cut_exactly(name: str, exact: Callable[..., ChannelTable]) -> None:
    table = exact(NETS[name](), torch.randn(3, 3, 8, 8))
    assert "stem.0" in table or "0.0" in table or name == "spatial attention" or "shuffle" in name


@pytest.mark.parametrize(
    ("name", "groups", "channels"),
    [
        ("padded shortcut", "stem.0", 8),
        ("grouped, whole groups", "stem.0", 4),
        ("grouped, offsets", "stem.0", 4),
        ("grouped, offsets", "body.0.0", 6),
        ("depthwise with multiplier", "stem.0", 8),
        ("channel shuffle", "a.0", 6),
        ("chunk", "a.0", 6),
        ("pixel shuffle", "up", 4),
        ("shared conv in sequence", "stem.0", 8),
        ("spatial attention", "stem.0", 8),
    ],
)
def test_units(name: str, groups: str, channels: int) -> None:
    table = channel_groups(NETS[name](), torch.randn(2, 3, 8, 8))
    assert table[groups].channels == channels


def test_one_channel_layers_are_refused() -> None:
    table = channel_groups(NETS["one output"](), torch.randn(2, 3, 8, 8))
    assert "nothing would be left" in table.refused["down.0"]
    assert table["stem.0"].channels == 8


def test_positions_after_concat_and_flatten() -> None:
    table = channel_groups(ConcatFlatten(), torch.randn(2, 3, 8, 8))
    (head,) = [member for member in table["right.0"].members if member.tensor == "head.weight"]
    assert (head.axis, head.role) == (1, "in")
    assert head.index[3].tolist() == [(6 + 3) * 4 + at for at in range(4)]  # offset 6, then 2 x 2 positions


# What cannot be cut says so


class Between(Wrapped):
    def __init__(self, operation: Callable[[Tensor], Tensor], out: int = 8) -> None:
        super().__init__(out)
        self.operation = operation

    def middle(self, x: Tensor) -> Tensor:
        return self.operation(x)


class Constant(torch.autograd.Function):
    """An operation that torch functions cannot look into."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone() + torch.arange(8.0, dtype=x.dtype).view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


class Attention(Wrapped):
    def __init__(self) -> None:
        super().__init__(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, x.shape[2:])


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "layer norm": (
        lambda: Between(nn.LayerNorm([8, 8, 8])),
        r"layer_norm normalises over channels in operation \(L",
    ),
    "group norm of all channels": (
        lambda: Between(nn.GroupNorm(1, 8)),
        r"group_norm normalises over channels in operation \(Group",
    ),
    "group norm without weights": (
        lambda: Between(nn.GroupNorm(2, 8, affine=False)),
        r"group_norm normalises over channels in operation \(Group",
    ),
    "softmax": (lambda: Between(nn.Softmax(1)), r"softmax runs over channels in operation \(Softmax"),
    "attention": (Attention, r"attention.*in attention \(MultiheadAttention"),
    "mean over channels": (
        lambda: Between(lambda x: x.mean(1, keepdim=True), 1),
        "mean reduces over channels",
    ),
    "fixed constant": (
        lambda: Between(lambda x: x * torch.arange(8.0, dtype=x.dtype).view(8, 1, 1)),
        "mul with a tensor of fixed size",
    ),
    "constant of a written size": (
        lambda: Between(lambda x: x * torch.ones(8, 1, 1).to(x)),
        "the cut network does not run",
    ),
    "fixed view": (lambda: Between(lambda x: x.view(-1, 8, 64).view_as(x)), "compact|does not run"),
    "fixed slice": (lambda: Between(lambda x: x[:, 1:6], 5), "getitem picks channels by fixed numbers"),
    "roll": (lambda: Between(lambda x: x.roll(1, 1)), "roll shifts channels"),
    "unequal split": (
        lambda: Between(lambda x: x.split([3, 5], 1)[1], 5),
        "split cuts the channels into unequal parts .keep the list",
    ),
    "index": (lambda: Between(lambda x: x[:, [0, 2, 4]], 3), "getitem picks numbers by an index tensor"),
    "matrix product": (
        lambda: Between(lambda x: torch.einsum("bchw,cd->bdhw", x, torch.eye(8).to(x))),
        "einsum",
    ),
    "autograd function": (lambda: Between(Constant.apply), "add with a tensor of fixed size|no convolution"),
    "size as a number": (lambda: Between(lambda x: x / x.shape[1]), "compact differs from mask"),
    "write into": (lambda: Between(_overwrite), "setitem writes into a tensor"),
    "unknown": (lambda: Between(lambda x: torch.cdist(x, x)), "cdist is not known to keep channels apart"),
    "computed weight": (
        lambda: Between(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
        r"conv2d has a weight that is computed.*remove_parametrizations",
    ),
    "batch and channels in one": (
        lambda: Between(lambda x: F.avg_pool1d(x.transpose(1, 3).flatten(0, 2), 2).view(2, 8, 8, 4).transpose(1, 3), 4),
        "avg_pool1d pools over channels",
    ),
}


def _overwrite(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 1.0
    return x


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_reason(name: str) -> None:
    import re

    make, reason = REFUSED[name]
    table = channel_groups(make(), torch.randn(2, 3, 8, 8))
    assert "stem.0" not in table
    assert re.search(reason, table.refused["stem.0"]), table.refused["stem.0"]


def test_only_the_layers_around_a_refusal_are_lost(exact: Callable[..., ChannelTable]) -> None:
    class Inner(Wrapped):
        def __init__(self) -> None:
            super().__init__(8)
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def middle(self, x: Tensor) -> Tensor:
            tokens = self.norm(x.flatten(2).transpose(1, 2))
            return (tokens + self.down(F.gelu(self.up(tokens)))).transpose(1, 2).unflatten(2, x.shape[2:])

    table = exact(Inner(), torch.randn(2, 3, 8, 8))
    assert table.names == ["up"]
    assert "LayerNorm" in table.refused["stem.0"]


def test_auxiliary_head_that_runs_only_in_training(exact: Callable[..., ChannelTable]) -> None:
    class Auxiliary(Wrapped):
        def __init__(self) -> None:
            super().__init__(8)
            self.body, self.aux = conv(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.stem(x)
            aux = self.aux(x.mean((2, 3))) if self.training else None
            out = self.head(self.body(x).mean((2, 3)))
            return out if aux is None else (out, aux)

    table = exact(Auxiliary(), torch.randn(2, 3, 8, 8))
    assert "aux.weight" in {member.tensor for member in table["stem.0"].members}


def test_several_inputs_and_a_dict_of_outputs(exact: Callable[..., ChannelTable]) -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = conv(3, 6), conv(1, 6), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            both = self.left(x) - self.right(y)
            return {"logits": self.head(both).mean((2, 3)), "map": self.head(both)}

    table = exact(TwoInputs(), (torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)))
    assert table.widths() == {"left.0": 6}


def test_frozen_parameters_stay_frozen(exact: Callable[..., ChannelTable]) -> None:
    net = NETS["grouped, offsets"]()
    for parameter in net.get_submodule("stem").parameters():
        parameter.requires_grad_(False)
    exact(net, torch.randn(2, 3, 8, 8))


def test_a_list_input_network_in_float64_and_one_example(exact: Callable[..., ChannelTable]) -> None:
    exact(NETS["concat and flatten"]().double(), torch.randn(1, 3, 8, 8, dtype=torch.float64), train=False)
