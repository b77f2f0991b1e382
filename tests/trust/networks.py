"""Random networks: chains of steps, each with branches of its own, made from a list of (kind, seed).

A specification is plain data, so that a failing network can be made smaller by leaving steps out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Spec = list[tuple[str, int]]
Step = tuple[nn.Module, int]  # a module and the channels that come out of it
Maker = Callable[[random.Random, int], Step]
ORDINARY: dict[str, Maker] = {}
ADVERSARIAL: dict[str, Maker] = {}


def ordinary(maker: Maker) -> Maker:
    """Register a step that careful people write."""
    ORDINARY[maker.__name__] = maker
    return maker


def adversarial(maker: Maker) -> Maker:
    """Register a step that is refused, or cut only if someone looks closely."""
    ADVERSARIAL[maker.__name__] = maker
    return maker


class Do(nn.Module):
    """A function of its parts and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def width(r: random.Random, of: int = 1) -> int:
    """A number of channels, a multiple of `of`."""
    return of * r.randint(max(2, 4 // of), max(3, 16 // of))


def act(r: random.Random) -> nn.Module:
    """An activation."""
    kinds: list[Callable[[], nn.Module]] = [nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.ELU]
    return r.choice([*kinds, lambda: nn.LeakyReLU(0.1), lambda: nn.ReLU(inplace=True)])()


def norm(r: random.Random, c: int) -> nn.Module:
    """A normalisation."""
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(c),
        lambda: nn.InstanceNorm2d(c, affine=True),
        nn.Identity,
    ]
    if c % 2 == 0:
        kinds.append(lambda: nn.GroupNorm(c // 2, c))
    return r.choice(kinds)()


def block(r: random.Random, i: int, o: int, k: int | None = None, groups: int = 1) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    k = r.choice([1, 3, 3, 5]) if k is None else k
    conv = nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=r.random() < 0.5)
    return nn.Sequential(conv, norm(r, o), act(r))


@ordinary
def plain(r: random.Random, c: int) -> Step:
    o = width(r)
    return block(r, c, o), o


@ordinary
def deep(r: random.Random, c: int) -> Step:
    a, o = width(r), width(r)
    return nn.Sequential(block(r, c, a), block(r, a, o)), o


@ordinary
def residual(r: random.Random, c: int) -> Step:
    a = width(r)
    body = nn.Sequential(block(r, c, a), nn.Conv2d(a, c, 3, padding=1), norm(r, c))
    return Do(lambda s, x: F.relu(x + s.body(x)), body=body), c


@ordinary
def projected(r: random.Random, c: int) -> Step:
    o = width(r)
    body, side = nn.Sequential(block(r, c, o), nn.Conv2d(o, o, 3, padding=1)), nn.Conv2d(c, o, 1)
    return Do(lambda s, x: s.body(x) + s.side(x), body=body, side=side), o


@ordinary
def dense(r: random.Random, c: int) -> Step:
    a, b = width(r), width(r)
    one, two = block(r, c, a), block(r, c + a, b)

    def run(s: Any, x: Tensor) -> Tensor:
        y = torch.cat([x, s.one(x)], 1)
        return torch.cat([y, s.two(y)], 1)

    return Do(run, one=one, two=two), c + a + b


@ordinary
def branches(r: random.Random, c: int) -> Step:
    a, b, d = width(r), width(r), width(r)
    parts = {"a": block(r, c, a, 1), "b": block(r, c, b, 3), "d": nn.Conv2d(c, d, 1)}
    return Do(lambda s, x: torch.cat((s.a(x), s.b(x), F.avg_pool2d(s.d(x), 3, 1, 1)), dim=1), **parts), a + b + d


@ordinary
def squeeze_excite(r: random.Random, c: int) -> Step:
    a = width(r)
    parts = {"down": nn.Conv2d(c, a, 1), "up": nn.Conv2d(a, c, 1)}
    return Do(lambda s, x: x * s.up(F.silu(s.down(x.mean((2, 3), keepdim=True)))).sigmoid(), **parts), c


@ordinary
def separable(r: random.Random, c: int) -> Step:
    o = width(r)
    return nn.Sequential(block(r, c, c, 3, groups=c), block(r, c, o, 1)), o


@ordinary
def inverted(r: random.Random, c: int) -> Step:
    a = 2 * c
    body = nn.Sequential(block(r, c, a, 1), block(r, a, a, 3, groups=a), nn.Conv2d(a, c, 1), norm(r, c))
    return Do(lambda s, x: x + s.body(x), body=body), c


@ordinary
def grouped(r: random.Random, c: int) -> Step:
    a, o = width(r, 4), width(r)
    return nn.Sequential(block(r, c, a, 1), block(r, a, a, 3, groups=r.choice([2, 4])), block(r, a, o, 1)), o


@ordinary
def shuffled(r: random.Random, c: int) -> Step:
    a = width(r, 2)
    return nn.Sequential(block(r, c, a, 1), nn.ChannelShuffle(2), block(r, a, a, 3, groups=a)), a


@ordinary
def halves(r: random.Random, c: int) -> Step:
    a = width(r, 2)

    def run(s: Any, x: Tensor) -> Tensor:
        left, right = s.a(x).chunk(2, dim=1)
        return torch.cat([left, s.b(right)], 1)

    return Do(run, a=block(r, c, a, 1), b=block(r, a // 2, a // 2)), a


@ordinary
def gated(r: random.Random, c: int) -> Step:
    a = width(r, 2)
    return nn.Sequential(nn.Conv2d(c, a, 3, padding=1), Do(lambda s, x: F.glu(x, 1))), a // 2


@ordinary
def pooled(r: random.Random, c: int) -> Step:
    pool = r.choice([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.Dropout2d(0.2), nn.Upsample(scale_factor=1.0)])
    return nn.Sequential(pool, block(r, c, o := width(r))), o


@ordinary
def scaled(r: random.Random, c: int) -> Step:
    shape = r.choice([(c, 1, 1), (1, c, 1, 1), (c, 8, 8)])
    return Do(lambda s, x: s.prelu(x) * s.scale, prelu=nn.PReLU(c), scale=nn.Parameter(torch.rand(shape) + 0.5)), c


@ordinary
def tokens(r: random.Random, c: int) -> Step:
    a = width(r)
    mlp = nn.Sequential(nn.Linear(c, a), nn.GELU(), nn.Linear(a, c))
    return Do(lambda s, x: (x.permute(0, 2, 3, 1) + s.mlp(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2), mlp=mlp), c


@ordinary
def u_shape(r: random.Random, c: int) -> Step:
    a, o = width(r), width(r)
    parts = {"down": block(r, c, a), "up": nn.ConvTranspose2d(a, a, 2, stride=2), "out": block(r, c + a, o)}
    return Do(lambda s, x: s.out(torch.cat([x, s.up(s.down(F.max_pool2d(x, 2)))], 1)), **parts), o


@ordinary
def shared(r: random.Random, c: int) -> Step:
    conv = nn.Conv2d(c, c, 3, padding=1)
    return Do(
        lambda s, x: s.n2(s.conv(F.relu(s.n1(s.conv(x))))), conv=conv, n1=nn.BatchNorm2d(c), n2=nn.BatchNorm2d(c)
    ), c


@ordinary
def stacked(r: random.Random, c: int) -> Step:
    o = width(r)
    parts = {"a": nn.Conv2d(c, o, 1), "b": nn.Conv2d(c, o, 3, padding=1)}
    return Do(lambda s, x: torch.stack([s.a(x), s.b(x)]).amax(0), **parts), o


# Steps that ask for attention


@adversarial
def counts_channels(r: random.Random, c: int) -> Step:
    return Do(lambda s, x: x / x.shape[1]), c


@adversarial
def over_channels(r: random.Random, c: int) -> Step:
    kinds: list[Callable[[Any, Tensor], Tensor]] = [
        lambda s, x: x.softmax(1),
        lambda s, x: x - x.mean(1, keepdim=True),
        lambda s, x: x.cumsum(1),
        lambda s, x: F.normalize(x, dim=1),
        lambda s, x: x.sort(1).values,
        lambda s, x: x.roll(1, 1),
        lambda s, x: x.flip(1),
        lambda s, x: F.layer_norm(x, x.shape[1:]),
        lambda s, x: F.group_norm(x, 1),
    ]
    return Do(r.choice(kinds)), c


@adversarial
def fixed_numbers(r: random.Random, c: int) -> Step:
    at = r.randrange(c)
    kinds: list[Callable[[Any, Tensor], Tensor]] = [
        lambda s, x: x * torch.linspace(0.5, 1.5, c).to(x).view(1, -1, 1, 1),
        lambda s, x: x + x[:, at : at + 1],
        lambda s, x: x.reshape(len(x), c, -1).relu().reshape(x.shape),
        lambda s, x: x.index_select(1, torch.arange(c - 1, -1, -1)),
        lambda s, x: torch.cat([x[:, :1] * 2, x[:, 1:]], 1),
        lambda s, x: x + torch.zeros(c, 1, 1).to(x),
    ]
    return Do(r.choice(kinds)), c


@adversarial
def written_into(r: random.Random, c: int) -> Step:
    def item(s: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0] = 1.0
        return x

    def view(s: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x.view(len(x), -1).add_(1.0)
        return x

    def narrow(s: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x.narrow(1, 0, x.shape[1] // 2).mul_(2.0)
        return x

    def data(s: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x.detach().sigmoid_()
        return x

    return Do(r.choice([item, view, narrow, data])), c


@adversarial
def only_sometimes(r: random.Random, c: int) -> Step:
    kinds: list[Callable[[Any, Tensor], Tensor]] = [
        lambda s, x: x + x.view(len(x), c, -1).mean(2).view(len(x), c, 1, 1) if s.training else x,
        lambda s, x: x * x.shape[1] if len(x) == 1 else x,
        lambda s, x: x * x.shape[1] if x.shape[1] < 3 else x,
        lambda s, x: x.squeeze(1).view(x.shape) if x.shape[1] == 1 else x,
    ]
    return Do(r.choice(kinds)), c


@adversarial
def noisy(r: random.Random, c: int) -> Step:
    kinds: list[Callable[[Any, Tensor], Tensor]] = [
        lambda s, x: F.dropout(x, 0.3, training=True),
        lambda s, x: x + 0.1 * torch.randn_like(x),
        lambda s, x: x + 0.1 * torch.rand(len(x), 1, 1, 1).to(x),
    ]
    return Do(r.choice(kinds)), c


@adversarial
def products(r: random.Random, c: int) -> Step:
    kinds: list[Callable[[Any, Tensor], Tensor]] = [
        lambda s, x: torch.einsum("bchw,cd->bdhw", x, s.p),
        lambda s, x: (x.movedim(1, -1) @ s.p).movedim(-1, 1),
        lambda s, x: F.conv2d(x, s.p.view(c, c, 1, 1)),
        lambda s, x: x * (x.flatten(2) @ x.flatten(2).mT).mean(2)[..., None, None],
    ]
    return Do(r.choice(kinds), p=nn.Parameter(torch.randn(c, c) * c**-0.5)), c


@adversarial
def computed(r: random.Random, c: int) -> Step:
    conv = nn.Conv2d(c, c, 3, padding=1)
    made = r.choice([nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
    return made(conv), c


@adversarial
def spread(r: random.Random, c: int) -> Step:
    a = width(r, 4)
    kinds: list[Callable[[Any, Tensor], Tensor]] = [
        lambda s, x: s.a(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
        lambda s, x: s.a(x).view(len(x), -1, 4, *x.shape[2:]).amax(2).repeat(1, 4, 1, 1),
        lambda s, x: torch.cat(s.a(x).split([a // 4, 3 * a // 4], 1)[::-1], 1),
    ]
    return Do(r.choice(kinds), a=nn.Conv2d(c, a, 1)), a


class RandomNet(nn.Module):
    """Steps one after the other, then a head: pooled or flattened features and a linear layer."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.steps = nn.ModuleList()
        channels = 8
        for kind, seed in spec:
            step, channels = {**ORDINARY, **ADVERSARIAL}[kind](random.Random(seed), channels)
            self.steps.append(step)
        self.flat = bool(spec) and spec[-1][1] % 2 == 0
        self.head = nn.Linear(channels * (4 if self.flat else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in self.steps:
            x = step(x)
        x = F.adaptive_avg_pool2d(x, 2).flatten(1) if self.flat else x.mean((2, 3))
        return self.head(x)


def random_spec(seed: int, hard: bool) -> Spec:
    """Two to six steps; about a third of them adversarial if `hard`."""
    r = random.Random(seed)
    kinds = [r.choice(list(ADVERSARIAL if hard and r.random() < 0.35 else ORDINARY)) for _ in range(r.randint(2, 6))]
    return [(kind, r.randrange(1 << 30)) for kind in kinds]


def make(spec: Spec) -> nn.Module:
    """The network of a specification, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(seed for _, seed in spec) % (1 << 31))
        return RandomNet(spec)
