"""The tensor itself: dispatch, in-place and out= forms, errors that name their place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pyrobnn.errors import ConfigError, NetError
from pyrobnn.moments import MomentOptions, Moments, moment_options, rule
from pyrobnn.moments.registry import RULES
from pyrobnn.moments.tensor import deferred


def some(*shape: int) -> Moments:
    g = torch.Generator().manual_seed(0)
    return Moments(torch.randn(shape, generator=g), torch.rand(shape, generator=g))


def same(a: Moments, b: Moments) -> None:
    torch.testing.assert_close((a.loc, a.variance), (b.loc, b.variance))


def test_metadata_reads_like_a_tensor() -> None:
    x = some(2, 3)
    assert isinstance(x, Tensor)
    assert x.shape == (2, 3) and x.size(1) == 3 and x.dim() == x.ndim == 2 and len(x) == 2
    assert x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() == 6
    assert x.is_floating_point() and torch.is_floating_point(x)
    assert "activation" in repr(x) and "(2, 3)" in repr(x)


def test_in_place_forms_equal_out_of_place() -> None:
    for inplace, plain in [
        (lambda x: F.relu(x, inplace=True), F.relu),
        (torch.relu_, torch.relu),
        (lambda x: x.relu_(), torch.relu),
        (lambda x: F.leaky_relu_(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
        (nn.Hardswish(inplace=True), F.hardswish),
        (nn.SiLU(inplace=True), F.silu),
        (nn.ReLU6(inplace=True), F.relu6),
        (lambda x: x.add_(1), lambda x: x + 1),
        (lambda x: x.mul_(2), lambda x: x * 2),
        (lambda x: x.clamp_(-1, 1), lambda x: x.clamp(-1, 1)),
    ]:
        x = some(3, 4)
        out = inplace(x)
        assert out is x
        same(x, plain(some(3, 4)))


def test_augmented_assignment() -> None:
    x = y = some(3, 4)
    x += some(3, 4)
    assert x is y
    torch.testing.assert_close(x.variance, 2 * some(3, 4).variance)
    z = torch.ones(3, 4)
    with pytest.raises(NetError, match="into a plain tensor; make that operation out-of-place"):
        z += some(3, 4)
    x *= 3
    torch.testing.assert_close(x.loc, 6 * some(3, 4).loc)


def test_out_argument() -> None:
    x, out = some(3, 4), some(3, 4)
    result = torch.add(x, 1.0, out=out)
    assert result is out
    same(out, x + 1)
    with pytest.raises(NetError, match="into a plain tensor"):
        torch.add(x, 1.0, out=torch.empty(3, 4))
    with pytest.raises(NetError, match="into a plain tensor"):
        torch.ones(3, 4).add_(x)


def test_assignment_into_a_slice() -> None:
    x = some(3, 4)
    x[:, 1:3] = torch.zeros(3, 2)
    x[0] = some(3, 4)[1]
    assert (x.variance[1:, 1:3] == 0).all() and (x.loc[1:, 1:3] == 0).all()
    torch.testing.assert_close(x.variance[0], some(3, 4).variance[1])
    with pytest.raises(NetError, match="slice of a plain"):
        torch.zeros(3, 4)[0] = some(4)


def test_a_view_of_a_tensor_changed_in_place_is_refused() -> None:
    x = some(3, 4)
    view = x.view(12)
    x.relu_()
    with pytest.raises(NetError, match="changed in place"):
        view + 1
    same(x + 1, F.relu(some(3, 4)) + 1)
    base = some(3, 4)
    torch.flatten(base).relu_()
    with pytest.raises(NetError, match="changed in place"):
        base * 2


class Inner(nn.Module):
    """Uses an operation that has no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real


class Outer(nn.Module):
    """Holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Identity(), Inner())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_an_operation_without_rule_names_itself_and_its_module() -> None:
    with pytest.raises(NetError, match=r"fft.*in module 'body\.1' \(Inner\)"):
        Outer()(some(2, 8))
    with pytest.raises(NetError, match="linalg.*pinv"):
        torch.linalg.pinv(some(2, 2))
    with pytest.raises(NetError, match="operation"):
        bool(some(1) > 0)


def test_numpy_and_float_conversions_are_refused() -> None:
    with pytest.raises(NetError, match="item"):
        some(1).item()
    with pytest.raises(NetError):
        some(2).numpy()


def test_a_rule_can_be_added() -> None:
    @rule(torch.cumsum)
    def cumulative(input: Moments, dim: int) -> Moments:
        return Moments(torch.cumsum(input.loc, dim), torch.cumsum(input.variance, dim))

    try:
        torch.testing.assert_close(torch.cumsum(some(2, 3), 1).variance, torch.cumsum(some(2, 3).variance, 1))
    finally:
        RULES.pop(torch.cumsum)


def test_options_are_checked_and_restored() -> None:
    with pytest.raises(ConfigError, match="relu: expected one of"):
        MomentOptions(relu="second")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'pool' is not one of"), moment_options(pool="clark"):
        pass
    with pytest.raises(ConfigError, match="nodes"):
        MomentOptions(nodes=1)
    x = some(3)
    with moment_options(relu="first_order"):
        torch.testing.assert_close(F.relu(x).variance, torch.where(x.loc > 0, x.variance, 0.0))
    assert not torch.equal(F.relu(x).variance, torch.where(x.loc > 0, x.variance, 0.0))


def test_a_deferred_variance_takes_the_scale_of_the_norm_that_follows() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval()
    nn.init.normal_(norm.weight)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    weights = {
        "weight": Moments.weight(conv.weight.detach(), torch.rand(4, 3, 3, 3), "moments"),
        "bias": Moments.weight(conv.bias.detach(), torch.rand(4), "moments"),
    }
    for x in (torch.randn(2, 3, 6, 6), some(2, 3, 6, 6)):
        z = functional_call(conv, weights, (x,))
        late = norm(norm(z))
        early = functional_call(conv, weights, (x,))
        assert early.variance.shape == early.shape  # computed now, so the norm scales the map itself
        same(late, norm(norm(early)))
    calls: list[object] = []
    lazy = deferred(torch.zeros(2), lambda scale: calls.append(scale) or torch.ones(2))
    assert not calls
    lazy.variance.sum(), lazy.variance.sum()
    assert calls == [None]
