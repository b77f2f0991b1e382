"""Every activation rule against 1e5 draws (exact rules within 5 Monte Carlo errors)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pyrobnn.moments import Moments, moment_options

DRAWS = 100_000


def random_moments(*shape: int, spread: float = 1.0, seed: int = 0) -> Moments:
    g = torch.Generator().manual_seed(seed)
    loc = torch.randn(shape, generator=g)
    return Moments(loc, spread * (0.05 + torch.rand(shape, generator=g)))


def drawn(op: Callable[..., Any], args: tuple[Any, ...], draws: int = DRAWS) -> Tensor:
    """`op` on plain samples of every Moments among `args`, [draws, ...]."""
    g = torch.Generator().manual_seed(1)
    where = [isinstance(a, Moments) for a in args]
    samples = [
        a.loc + a.variance.sqrt() * torch.randn(draws, *a.shape, generator=g) if isinstance(a, Moments) else a
        for a in args
    ]
    out: Tensor = torch.vmap(op, in_dims=tuple(0 if w else None for w in where), chunk_size=20_000)(*samples)
    return out


def agrees(result: Moments, draws: Tensor, slack_mean: float = 0.0, slack_variance: float = 0.0) -> None:
    """Within 5 Monte Carlo errors, plus `slack` (in standard deviations; relative to the variance)."""
    draws = draws.double()
    n, mean = len(draws), draws.mean(0)
    v, fourth = draws.var(0), (draws - mean).pow(4).mean(0)
    mean_error = 5 * (v / n).sqrt() + slack_mean * v.sqrt() + 1e-5
    variance_error = 5 * ((fourth - v.square()).clamp_min(0) / n).sqrt() + slack_variance * v + 1e-5
    assert result.shape == mean.shape == result.variance.shape
    assert ((result.loc.double() - mean).abs() <= mean_error).all()
    assert ((result.variance.double() - v).abs() <= variance_error).all()


X2 = (2, 3, 6, 6)
EXACT: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "relu": (F.relu, (random_moments(4, 9),)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), (random_moments(4, 9),)),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.1, 0.5, -0.3])), (random_moments(2, 3, 4),)),
    "relu6": (lambda x: F.relu6(3 * x), (random_moments(4, 9),)),
    "hardtanh": (F.hardtanh, (random_moments(4, 9),)),
    "clamp_min": (lambda x: x.clamp(min=0.3), (random_moments(4, 9),)),
    "hardsigmoid": (lambda x: F.hardsigmoid(3 * x), (random_moments(4, 9),)),
    "hardswish": (lambda x: F.hardswish(2 * x), (random_moments(4, 9),)),
    "abs": (torch.abs, (random_moments(4, 9),)),
    "square": (torch.square, (random_moments(4, 9),)),
    "pow": (lambda x: x**2, (random_moments(4, 9),)),
    "add": (lambda x, y: x + y, (random_moments(4, 9), random_moments(4, 9, seed=2))),
    "add_alpha": (lambda x, y: torch.add(x, y, alpha=-0.5), (random_moments(4, 9), random_moments(9, seed=2))),
    "add_itself": (lambda x: x + x, (random_moments(4, 9),)),
    "times_itself": (lambda x: x * x, (random_moments(4, 9),)),
    "subtract_from": (lambda x: 1.5 - x, (random_moments(4, 9),)),
    "rsub_tensor": (lambda x: torch.arange(9.0) - x, (random_moments(4, 9),)),
    "negative": (lambda x: -x, (random_moments(4, 9),)),
    "scale": (lambda x: 2 * x / 3, (random_moments(4, 9),)),
    "scale_tensor": (lambda x: torch.arange(9.0) * x, (random_moments(4, 9),)),
    "divide_tensor": (lambda x: x / torch.arange(1.0, 10.0), (random_moments(4, 9),)),
    "product": (lambda x, y: x * y, (random_moments(4, 9), random_moments(4, 1, seed=2))),
    "addcmul": (
        lambda x, y: torch.addcmul(y, x, y.detach() * 0 + 2.0, value=0.5),
        (random_moments(4, 9), random_moments(4, 9, seed=2)),
    ),
    "mean": (lambda x: x.mean((2, 3)), (random_moments(*X2),)),
    "mean_all": (lambda x: x.mean(), (random_moments(4, 9),)),
    "sum": (lambda x: torch.sum(x, 1, keepdim=True), (random_moments(4, 9),)),
    "linear": (lambda x: F.linear(x, torch.ones(2, 9) / 3, torch.ones(2)), (random_moments(4, 9),)),
    "linear_random": (
        lambda x, w, b: F.linear(x, w, b),
        (random_moments(4, 9), random_moments(2, 9, seed=2), random_moments(2, seed=3)),
    ),
    "matmul": (torch.matmul, (random_moments(2, 4, 5), random_moments(2, 5, 3, seed=2))),
    "matmul_plain_left": (lambda y: torch.eye(5)[:2] @ y, (random_moments(5, 3),)),
    "addmm": (torch.addmm, (random_moments(3), random_moments(4, 5, seed=2), random_moments(5, 3, seed=3))),
    "conv1d": (F.conv1d, (random_moments(2, 3, 7), random_moments(4, 3, 3, seed=2))),
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        (random_moments(*X2), random_moments(4, 3, 3, 3, seed=2), random_moments(4, seed=3)),
    ),
    "conv2d_plain_weight": (
        lambda x: F.conv2d(x, torch.linspace(-1, 1, 108).view(4, 3, 3, 3), stride=2),
        (random_moments(*X2),),
    ),
    "conv2d_grouped_dilated": (
        lambda x, w: F.conv2d(x, w, None, 1, 2, 2, 2),
        (random_moments(1, 4, 5, 5), random_moments(6, 2, 3, 3, seed=2)),
    ),
    "conv3d": (F.conv3d, (random_moments(1, 2, 3, 3, 3), random_moments(3, 2, 2, 2, 2, seed=2))),
    "conv_transpose2d": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2),
        (random_moments(1, 2, 3, 3), random_moments(2, 3, 2, 2, seed=2)),
    ),
    "avg_pool": (lambda x: F.avg_pool2d(x, 2), (random_moments(*X2),)),
    "avg_pool_padded": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (random_moments(*X2),)),
    "avg_pool_ceil": (lambda x: F.avg_pool2d(x, 4, 3, 1, True), (random_moments(*X2),)),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), (random_moments(2, 3, 7),)),
    "adaptive_avg_pool": (lambda x: F.adaptive_avg_pool2d(x, (4, 1)), (random_moments(*X2),)),
    "batch_norm_eval": (
        lambda x: F.batch_norm(
            x,
            torch.tensor([0.5, -1.0, 0.0]),
            torch.tensor([2.0, 0.5, 1.0]),
            torch.tensor([1.5, 0.7, -2.0]),
            torch.ones(3),
        ),
        (random_moments(*X2),),
    ),
    "batch_norm_random_affine": (
        lambda x, g, b: F.batch_norm(x, torch.zeros(3), torch.full((3,), 2.0), g, b),
        (random_moments(2, 3, 4), random_moments(3, seed=2), random_moments(3, seed=3)),
    ),
    "cat": (lambda x, y: torch.cat((x, torch.ones(2, 1), y), 1), (random_moments(2, 3), random_moments(2, 2, seed=2))),
    "stack": (lambda x, y: torch.stack([x, y], -1), (random_moments(2, 3), random_moments(2, 3, seed=2))),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), value=3.0), (random_moments(*X2),)),
    "reflect": (lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), (random_moments(*X2),)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (random_moments(1, 4, 2, 2),)),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), (random_moments(1, 2, 3, 3),)),
    "masked_fill": (lambda x: x.masked_fill(torch.eye(3, dtype=torch.bool), -1.0), (random_moments(3, 3),)),
    "where": (lambda x: torch.where(torch.eye(3, dtype=torch.bool), x, 7.0), (random_moments(3, 3),)),
    "where_both": (
        lambda x, y: torch.where(torch.eye(3, dtype=torch.bool), x, y),
        (random_moments(3, 3), random_moments(3, 3, seed=2)),
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_exact_rules_agree_with_draws(case: str) -> None:
    op, args = EXACT[case]
    size = max(a.numel() for a in args)
    agrees(op(*args), drawn(op, args, DRAWS if size < 60 else 20_000))


# name: (operation, spread of the input, slack of the mean in std, relative slack of the variance)
SMOOTH = {
    "tanh": (torch.tanh, 1.0, 0.005, 0.01),
    "sigmoid": (torch.sigmoid, 1.0, 0.005, 0.01),
    "gelu": (F.gelu, 1.0, 0.005, 0.01),
    "silu": (F.silu, 1.0, 0.005, 0.01),
    "mish": (F.mish, 1.0, 0.005, 0.01),
    "softplus": (F.softplus, 1.0, 0.005, 0.01),
    "exp": (torch.exp, 0.25, 0.005, 0.01),
    "elu": (F.elu, 1.0, 0.02, 0.03),
    "selu": (F.selu, 1.0, 0.02, 0.03),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_quadrature_agrees_with_draws(name: str) -> None:
    op, spread, slack_mean, slack_variance = SMOOTH[name]
    x = random_moments(4, 9, spread=spread)
    agrees(op(x), drawn(op, (x,)), slack_mean, slack_variance)


FIRST_ORDER = ("tanh", "sigmoid", "gelu", "silu", "relu", "leaky_relu", "hardswish", "elu")


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_agrees_where_the_variance_is_small(name: str) -> None:
    """f(μ), f'(μ)²v: relative error of the variance O(v) for v = 1e-4 away from kinks."""
    op = getattr(F, name, None) or getattr(torch, name)
    x = Moments(torch.tensor([-1.3, -0.4, 0.5, 1.7]), torch.full((4,), 1e-4))
    with moment_options(relu="first_order", smooth="first_order"):
        result = op(x)
    agrees(result, drawn(op, (x,)), 0.02, 0.02)
    exact = op(x)
    assert not torch.equal(result.variance, exact.variance) or name in ("relu", "leaky_relu")


def test_first_order_slopes_carry_gradients() -> None:
    mu = torch.tensor([0.3, -0.8], requires_grad=True)
    v = torch.tensor([0.1, 0.2], requires_grad=True)
    with moment_options(smooth="first_order"):
        out = torch.tanh(Moments(mu, v))
    g_mu, g_v = torch.autograd.grad(out.variance.sum(), (mu, v))
    slope = 1 - torch.tanh(mu).square()
    torch.testing.assert_close(g_v, slope.square())
    torch.testing.assert_close(g_mu, v * 2 * slope * (-2 * torch.tanh(mu) * slope))


def test_max_pool_gathers_at_the_largest_mean() -> None:
    x = random_moments(2, 3, 6, 6)
    out = F.max_pool2d(x, 2)
    pooled, indices = F.max_pool2d(x.loc, 2, return_indices=True)
    torch.testing.assert_close(out.loc, pooled)
    torch.testing.assert_close(out.variance, x.variance.flatten(2).gather(2, indices.flatten(2)).view_as(pooled))
    # where one entry stands out, this is the distribution of the maximum
    clear = Moments(torch.eye(2).expand(1, 1, 2, 2) * torch.tensor([9.0, 0.0]), torch.full((1, 1, 2, 2), 0.3))
    agrees(F.max_pool2d(clear, 2), drawn(lambda t: F.max_pool2d(t, 2), (clear,)))


@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": (1, 2), "stride": (3, 2)}])
def test_clark_is_exact_for_pairs_and_close_for_windows(options: dict[str, Any]) -> None:
    x = random_moments(1, 2, 6, 6)
    with moment_options(max_pool="clark"):
        out = F.max_pool2d(x, **options)
    exact = options["kernel_size"] == (1, 2)
    draws = drawn(lambda t: F.max_pool2d(t, **options), (x,), 50_000)
    agrees(out, draws, *((0.0, 0.0) if exact else (0.04, 0.25)))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "ceil_mode": True},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 2, "dilation": 2},
        {"kernel_size": 3},
    ],
)
def test_clark_without_variance_is_max_pooling(options: dict[str, Any]) -> None:
    """Windows, padding, dilation and ceil mode are those of F.max_pool2d."""
    loc = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    with moment_options(max_pool="clark"):
        out = F.max_pool2d(Moments(loc, torch.zeros_like(loc)), **options)
    torch.testing.assert_close(out.loc, F.max_pool2d(loc, **options))
    assert out.variance.abs().max() < 1e-6


def test_max_pool_forms() -> None:
    x = random_moments(2, 3, 6)
    assert F.max_pool1d(x, 2).shape == (2, 3, 3)
    assert F.adaptive_max_pool2d(random_moments(1, 2, 5, 5), 2).shape == (1, 2, 2, 2)
    out, indices = F.max_pool2d(random_moments(1, 2, 4, 4), 2, return_indices=True)
    assert isinstance(out, Moments) and indices.dtype == torch.int64
    assert isinstance(nn.MaxPool3d(2)(random_moments(1, 2, 4, 4, 4)), Moments)


def test_batch_norm_in_training_uses_the_moments_of_the_mean() -> None:
    norm, reference = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    with torch.no_grad():
        for n in (norm, reference):
            n.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    x = random_moments(4, 3, 5, 5)
    out = norm(x)
    torch.testing.assert_close(out.loc, reference(x.loc))
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)
    assert norm.num_batches_tracked == 1
    s2 = x.loc.var((0, 2, 3), unbiased=False) + norm.eps
    expected = x.variance * (norm.weight.square() / s2).view(1, 3, 1, 1)
    torch.testing.assert_close(out.variance, expected)


def test_batch_norm_gradients_through_the_mean_are_complete() -> None:
    x = torch.randn(6, 3, 4, 4, requires_grad=True)
    g, b = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    weights = torch.randn(6, 3, 4, 4)
    got = torch.autograd.grad(
        (F.batch_norm(Moments(x, torch.ones_like(x)), None, None, g, b, True).loc * weights).sum(), (x, g, b)
    )
    expected = torch.autograd.grad((F.batch_norm(x, None, None, g, b, True) * weights).sum(), (x, g, b))
    for p, q in zip(got, expected, strict=True):
        torch.testing.assert_close(p, q)


NORMS = {
    "layer": (lambda x: F.layer_norm(x, (3, 4), torch.linspace(-1, 2, 12).view(3, 4)), (2, 3, 4)),
    "layer_last": (lambda x: F.layer_norm(x, (8,)), (4, 8)),
    "group": (lambda x: F.group_norm(x, 2, torch.arange(6.0), torch.ones(6)), (2, 6, 4)),
}


@pytest.mark.parametrize("name", NORMS)
def test_layer_and_group_norm_agree_with_draws_for_small_variances(name: str) -> None:
    op, shape = NORMS[name]
    x = random_moments(*shape, spread=1e-3)
    agrees(op(x), drawn(op, (x,)), 0.02, 0.03)


def test_group_norm_of_many_entries_is_close() -> None:
    x = random_moments(1, 4, 12, 12, spread=0.3)
    agrees(F.group_norm(x, 2), drawn(lambda t: F.group_norm(t, 2), (x,), 5_000), 0.02, 0.05)


def test_random_layer_norm_scale_agrees_with_draws() -> None:
    x = random_moments(3, 6, spread=1e-3)
    gamma, beta = random_moments(6, seed=2), random_moments(6, seed=3)
    agrees(
        F.layer_norm(x, (6,), gamma, beta),
        drawn(lambda t, g, b: F.layer_norm(t, (6,), g, b), (x, gamma, beta)),
        0.02,
        0.02,
    )


def test_softmax_and_log_softmax_for_small_variances() -> None:
    x = random_moments(3, 5, spread=0.01)
    agrees(F.softmax(x, 1), drawn(lambda t: F.softmax(t, 1), (x,)), 0.05, 0.05)
    agrees(F.log_softmax(x, -1), drawn(lambda t: F.log_softmax(t, -1), (x,)), 0.01, 0.05)


def test_dropout() -> None:
    x = random_moments(64, 64)
    assert torch.equal(nn.Dropout(0.5).eval()(x).loc, x.loc)
    torch.manual_seed(0)
    out = F.dropout(x, 0.25)
    kept = out.variance != 0
    assert abs(kept.float().mean() - 0.75) < 0.05
    torch.testing.assert_close(out.loc[kept], x.loc[kept] / 0.75)
    torch.testing.assert_close(out.variance[kept], x.variance[kept] / 0.75**2)
    assert (out.loc[~kept] == 0).all()
    maps = F.dropout2d(random_moments(4, 8, 3, 3), 0.5)
    assert set((maps.variance != 0).flatten(2).float().mean(2).unique().tolist()) == {0.0, 1.0}


MOVEMENTS: dict[str, Callable[[Any], Any]] = {
    "flatten": lambda x: torch.flatten(x, 1),
    "view": lambda x: x.view(2, -1),
    "view_size": lambda x: x.view(x.size(0), x.shape[1] * 16),
    "reshape": lambda x: x.reshape(4, 2, 3, 4),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: torch.transpose(x, 1, 2).contiguous(),
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 0])),
    "slice": lambda x: x[:, 1:, ::2, ::2],
    "fancy": lambda x: x[:, torch.tensor([0, 0, 2])],
    "chunk": lambda x: x.chunk(3, dim=1)[1],
    "split": lambda x: torch.split(x, [1, 2], 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(-1),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "flip": lambda x: x.flip(3),
    "roll": lambda x: torch.roll(x, 1, 1),
    "unfold": lambda x: F.unfold(x, 2),
    "channel_shuffle": lambda x: torch.channel_shuffle(x, 3),
    "clone": lambda x: x.clone(memory_format=torch.channels_last),
    "iterate": lambda x: next(iter(x)),
}


@pytest.mark.parametrize("name", MOVEMENTS)
def test_movements_move_mean_and_variance_alike(name: str) -> None:
    move = MOVEMENTS[name]
    x = random_moments(2, 3, 4, 4)
    out = move(x)
    torch.testing.assert_close(out.loc, move(x.loc))
    torch.testing.assert_close(out.variance, move(x.variance))


def test_casts() -> None:
    x = random_moments(2, 3)
    assert x.to(torch.bfloat16).variance.dtype == torch.float32
    assert x.bfloat16().loc.dtype == torch.bfloat16
    assert x.double().variance.dtype == torch.float64
    assert x.half().float().dtype == torch.float32
    assert not Moments(x.loc.clone().requires_grad_(), x.variance).detach().loc.requires_grad


def test_functional_call_on_an_activation() -> None:
    """A random input alone makes the output random."""
    net = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))
    x = random_moments(3, 9)
    out = functional_call(net, {}, (x,))
    assert isinstance(out, Moments) and (out.variance > 0).all()
