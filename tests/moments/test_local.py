"""Weights read locally: both moments of every output, gradients, shared draws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from pyrobnn.errors import NetError
from pyrobnn.moments import Moments, shared_weights

CASES = {
    "linear": (lambda x, w, b: F.linear(x, w, b), (4, 6), (3, 6), 3),
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1), (2, 3, 8), (4, 3, 3), 4),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (2, 3, 5, 5), (4, 3, 3, 3), 4),
    "conv2d_same": (lambda x, w, b: F.conv2d(x, w, b, padding="same"), (2, 3, 5, 5), (4, 3, 3, 3), 4),
    "strided_dilated": (
        lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=2, dilation=2),
        (2, 3, 6, 6),
        (4, 3, 3, 3),
        4,
    ),
    "grouped": (lambda x, w, b: F.conv2d(x, w, b, groups=2), (2, 4, 5, 5), (6, 2, 3, 3), 6),
    "depthwise": (lambda x, w, b: F.conv2d(x, w, b, groups=4), (2, 4, 5, 5), (4, 1, 3, 3), 4),
    "conv3d": (lambda x, w, b: F.conv3d(x, w, b), (1, 2, 4, 4, 4), (3, 2, 2, 2, 2), 3),
    "transposed": (lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2), (1, 2, 3, 3), (2, 3, 2, 2), 3),
}


def close_to_draws(draws: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, sigmas: float = 5.0) -> None:
    """Mean and variance of `draws` along axis 0 agree within their own Monte Carlo errors."""
    draws = draws.double()
    n = len(draws)
    centred = draws - draws.mean(0)
    v, fourth = centred.square().mean(0), centred.pow(4).mean(0)
    mean_error = (v / n).sqrt() + 1e-6
    variance_error = ((fourth - v.square()).clamp_min(0) / n).sqrt() + 1e-7
    assert ((draws.mean(0) - mean.double()).abs() <= sigmas * mean_error).all()
    assert ((v - variance.double()).abs() <= sigmas * variance_error).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bias", ["none", "plain", "random"])
def test_output_has_both_moments_of_sampled_weights(case: str, bias: str) -> None:
    torch.manual_seed(1)
    op, x_shape, w_shape, outputs = CASES[case]
    x, m, s2 = torch.randn(x_shape), torch.randn(w_shape), torch.rand(w_shape)
    bm, b2 = torch.randn(outputs), torch.rand(outputs)
    b = {"none": None, "plain": bm, "random": Moments.weight(bm, b2)}[bias]
    # exact moments of a linear map of independent weights
    mean = op(x, m, None if bias == "none" else bm)
    variance = op(x.square(), s2, b2 if bias == "random" else None)
    many = x.repeat(4000, *[1] * (x.dim() - 1))  # the noise is drawn for every example apart
    out = op(many, Moments.weight(m, s2), b)
    assert type(out) is torch.Tensor
    close_to_draws(out.unflatten(0, (4000, len(x))), mean, variance)


def test_one_variance_per_filter_is_the_same_as_its_expansion() -> None:
    torch.manual_seed(2)
    for groups, x in ((1, torch.randn(2, 4, 6, 6)), (2, torch.randn(2, 4, 6, 6)), (1, torch.randn(4, 6, 6))):
        m, s2 = torch.randn(6, 4 // groups, 3, 3), torch.rand(6, 1, 1, 1)
        for x_moments in (x, Moments(x, torch.rand_like(x))):
            outputs = [
                F.conv2d(x_moments, Moments.weight(m, v, "moments"), None, 2, 1, 1, groups).variance
                for v in (s2, s2.expand_as(m).contiguous())
            ]
            torch.testing.assert_close(*outputs)
    m, s2, h = torch.randn(5, 7), torch.rand(5, 1), torch.randn(3, 7)
    a, b = (F.linear(h, Moments.weight(m, v, "moments")).variance for v in (s2, s2.expand_as(m).contiguous()))
    torch.testing.assert_close(a, b)


def test_gradients_are_those_of_the_reparameterised_output() -> None:
    torch.manual_seed(3)
    x = torch.randn(3, 2, 5, 5, requires_grad=True)
    m, s2 = torch.randn(4, 2, 3, 3, requires_grad=True), torch.rand(4, 2, 3, 3, requires_grad=True)
    weights = torch.randn(3, 4, 3, 3)
    out = F.conv2d(x, Moments.weight(m, s2, generator=torch.Generator().manual_seed(5)))
    got = torch.autograd.grad((out * weights).sum(), (x, m, s2))
    noise = torch.empty(3, 4, 3, 3).normal_(generator=torch.Generator().manual_seed(5))
    reference = F.conv2d(x, m) + F.conv2d(x.square(), s2).sqrt() * noise
    torch.testing.assert_close(out, reference)
    expected = torch.autograd.grad((reference * weights).sum(), (x, m, s2))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_all_zero_patches_give_finite_gradients() -> None:
    m, rho = torch.ones(1, 1, 3, 3, requires_grad=True), torch.full((1, 1, 3, 3), -3.0, requires_grad=True)
    x = torch.zeros(1, 1, 5, 5, requires_grad=True)
    F.conv2d(x, Moments.weight(m, rho.exp())).sum().backward()
    for t in (m, rho, x):
        assert torch.isfinite(t.grad).all()


def test_gradient_variance_is_lower_than_with_sampled_weights() -> None:
    torch.manual_seed(4)
    x, y = torch.randn(64, 10), torch.randint(3, (64,))
    m, s2 = torch.randn(3, 10, requires_grad=True), torch.full((3, 10), 0.25, requires_grad=True)

    def gradients(local: bool) -> torch.Tensor:
        found = []
        for _ in range(400):
            w = Moments.weight(m, s2) if local else m + s2.sqrt() * torch.randn_like(m)
            found.append(torch.autograd.grad(F.cross_entropy(F.linear(x, w), y), m)[0])
        return torch.stack(found)

    local, sampled = gradients(True), gradients(False)
    assert local.var(0).sum() < 0.5 * sampled.var(0).sum()
    # and both estimate the same gradient
    error = (sampled.var(0) / 400 + local.var(0) / 400).sqrt()
    assert ((local.mean(0) - sampled.mean(0)).abs() < 5 * error).all()


def test_an_operation_without_a_rule_uses_one_draw_throughout() -> None:
    w = Moments.weight(torch.zeros(3, 3), torch.ones(3, 3))
    a, b = torch.linalg.norm(w), torch.linalg.norm(w)
    assert type(a) is torch.Tensor
    assert a == b == torch.linalg.norm(w.sample_weight())
    # what was derived from the weight by a linear rule shares the draw
    torch.testing.assert_close(torch.linalg.norm(2.0 * w.t()), 2 * a)


def test_a_given_draw_is_used() -> None:
    draw = torch.arange(4.0).view(2, 2)
    w = Moments.weight(torch.zeros(2, 2), torch.ones(2, 2), draw=draw)
    torch.testing.assert_close(torch.tanh(w), torch.tanh(draw))


def test_a_broadcast_weight_is_sampled_and_the_other_factor_is_not() -> None:
    torch.manual_seed(0)
    w = Moments.weight(torch.ones(4, 3, 3, 3), torch.ones(4, 3, 3, 3))
    gate = Moments.weight(torch.ones(3), torch.ones(3))
    product = w * gate.view(1, 3, 1, 1)
    assert isinstance(product, Moments)
    g = gate.sample_weight().view(1, 3, 1, 1)
    torch.testing.assert_close(product.variance, (g.square()).expand(4, 3, 3, 3))
    torch.testing.assert_close(product.sample_weight(), w.sample_weight() * g)
    assert type(gate.view(1, 3, 1, 1) * torch.ones(4, 3, 3, 3)) is torch.Tensor


class Tied(nn.Module):
    """A layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.both(self.both(self.first(x)))


def test_a_shared_weight_is_found_and_shares_its_draw() -> None:
    torch.manual_seed(6)
    net, x = Tied(), torch.randn(2, 4)
    state = torch.get_rng_state()
    assert shared_weights(net, x) == {"both.weight"}
    assert torch.equal(state, torch.get_rng_state())
    loc = net.both.weight.detach()
    w = Moments.weight(loc, torch.full_like(loc, 0.1), shared=True)
    out = functional_call(net, {"both.weight": w}, (x,))
    expected = functional_call(net, {"both.weight": w.sample_weight()}, (x,))
    torch.testing.assert_close(out, expected)


def test_a_second_use_is_reported_and_sampled() -> None:
    seen: list[str] = []
    w = Moments.weight(torch.eye(3), torch.ones(3, 3), name="w", on_shared=seen.append)
    x = torch.ones(1, 3)
    F.linear(x, w)
    torch.testing.assert_close(F.linear(x, w), F.linear(x, w.sample_weight()))
    assert seen == ["w"]


def test_generator_makes_the_noise_reproducible_and_leaves_the_global_state() -> None:
    x, m = torch.randn(2, 3), torch.randn(4, 3)
    state = torch.get_rng_state()
    outputs = [
        F.linear(x, Moments.weight(m, torch.ones_like(m), generator=torch.Generator().manual_seed(9))) for _ in range(2)
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(state, torch.get_rng_state())


def test_variances_are_summed_in_fp32_under_autocast() -> None:
    torch.manual_seed(7)
    x, m, s2 = torch.randn(8, 3, 9, 9), torch.randn(4, 3, 3, 3), torch.rand(4, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        local = F.conv2d(x, Moments.weight(m, s2))
        moments = F.conv2d(x, Moments.weight(m, s2, "moments"))
    assert local.dtype == torch.bfloat16
    assert moments.loc.dtype == torch.bfloat16
    assert moments.variance.dtype == torch.float32
    # The operands of the products are rounded, their sums are not: less than a draw of the logits varies by.
    error = (moments.variance / F.conv2d(x.square(), s2) - 1).abs()
    assert float(error.mean()) < 2e-3 and float(error.max()) < 1e-2


def test_random_weights_are_not_changed_in_place() -> None:
    w = Moments.weight(torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(NetError, match="in place"):
        w.mul_(2)


def test_variance_must_broadcast() -> None:
    with pytest.raises(NetError, match=r"expected a variance that broadcasts to .*\(2, 2\), got \(3,\)"):
        Moments(torch.ones(2, 2), torch.ones(3))


def test_local_weights_in_norm_layers_are_drawn_once_per_batch() -> None:
    torch.manual_seed(8)
    norm, x = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
    gamma = Moments.weight(torch.ones(3), torch.ones(3))
    out = functional_call(norm, {"weight": gamma}, (x,))
    torch.testing.assert_close(out, functional_call(norm, {"weight": gamma.sample_weight()}, (x,)))


@pytest.mark.parametrize("case", ["linear", "conv1d", "strided_dilated", "grouped", "conv3d"])
@pytest.mark.parametrize("bias", ["none", "random"])
def test_the_written_gradient_is_that_of_the_formula(case: str, bias: str) -> None:
    """Against autograd through mean + sqrt(variance) ε with the same ε, in double precision."""
    torch.manual_seed(2)
    op, x_shape, w_shape, outputs = CASES[case]
    tensors = [
        torch.randn(x_shape),
        torch.randn(w_shape),
        torch.rand(w_shape),
        torch.randn(outputs),
        torch.rand(outputs),
    ]
    inputs = [t.double().requires_grad_() for t in tensors]
    x, m, s2, bm, b2 = inputs
    random = bias == "random"
    weight = Moments.weight(m, s2, generator=torch.Generator().manual_seed(3))
    out = op(x, weight, Moments.weight(bm, b2) if random else None)
    spread = op(x.square(), s2, b2 if random else None)
    noise = torch.empty_like(spread).normal_(generator=torch.Generator().manual_seed(3))
    wanted = op(x, m, bm if random else None) + spread.sqrt() * noise
    assert torch.allclose(out, wanted)
    used = inputs if random else inputs[:3]
    cotangent = torch.randn_like(out)
    for found, expected in zip(
        torch.autograd.grad(out, used, cotangent), torch.autograd.grad(wanted, used, cotangent), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_under_bfloat16_the_spread_is_right_to_a_part_of_its_noise() -> None:
    """What the module says of the error: relative errors of standard deviations, with the noise held."""
    torch.manual_seed(4)
    x, m, s2 = torch.randn(16, 8, 12, 12), torch.zeros(16, 8, 3, 3), torch.rand(16, 8, 3, 3)

    def drawn() -> torch.Tensor:
        return F.conv2d(x, Moments.weight(m, s2, generator=torch.Generator().manual_seed(5))).float()

    exact = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        rough = drawn()
    error = (rough / exact - 1).abs()
    assert float(error.mean()) < 0.004 and float(error.max()) < 0.02


def test_a_patch_of_zeros_has_no_slope() -> None:
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    m, s2 = torch.randn(2, 3, 3, 3), torch.zeros(2, 3, 3, 3, requires_grad=True)
    F.conv2d(x, Moments.weight(m, s2)).sum().backward()
    assert bool(torch.isfinite(x.grad).all()) and not bool(s2.grad.any())
