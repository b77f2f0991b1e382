"""Every rule's gradients against finite differences, in training mode, in means and variances of all that is random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.moments import Moments, moment_options
from pyrobnn.moments import registry as registry_module
from pyrobnn.moments.registry import RULES

Case = tuple[Callable[..., Any], list[tuple[int, ...]]]
MASK = torch.tensor([[True, False, True], [False, True, False]])


def seeded(op: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        torch.manual_seed(3)
        return op(*args)

    return run


def layer(make: Callable[[], nn.Module]) -> Callable[..., Any]:
    """A module in training mode, made anew for each evaluation (its buffers move)."""
    return lambda x: seeded(make)().double().train()(x)


A, B, X1, X2, X3 = (2, 3), (2, 3), (2, 3, 5), (2, 4, 4, 4), (1, 2, 3, 3, 3)
CASES: dict[str, Case] = {
    name: (getattr(F, name, None) or getattr(torch, name), [A])
    for name in (
        *("relu", "leaky_relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "tanh", "sigmoid", "softplus", "mish"),
        *("selu", "elu", "celu", "silu", "gelu", "exp", "sin", "cos", "softsign", "logsigmoid", "tanhshrink", "erf"),
        *("square", "abs", "neg", "negative", "absolute"),
    )
}
CASES |= {
    "log1p": (lambda x: torch.log1p(0.1 * x + 1), [A]),
    "clamp": (lambda x: torch.clamp(x, -0.4, 0.6), [A]),
    "clip": (lambda x: torch.clip(x, -0.4, 0.6), [A]),
    "clamp_min": (lambda x: torch.clamp_min(x, 0.1), [A]),
    "clamp_max": (lambda x: torch.clamp_max(x, 0.1), [A]),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.1, -0.2, 0.3]).double()), [A]),
    "add": (lambda x, y: torch.add(x, y, alpha=0.5) + x, [A, B]),
    "radd": (lambda x: 1.0 + x, [A]),
    "iadd": (lambda x, y: torch.relu(x).__iadd__(y), [A, B]),
    "sub": (lambda x, y: x - y, [A, B]),
    "isub": (lambda x, y: torch.relu(x).__isub__(y), [A, B]),
    "subtract": (lambda x, y: torch.subtract(x, y), [A, B]),
    "rsub": (lambda x: 1.0 - x, [A]),
    "rsub_function": (lambda x: torch.rsub(x, 2.0), [A]),
    "neg_operator": (lambda x: -x, [A]),
    "abs_operator": (lambda x: abs(x), [A]),
    "mul": (lambda x, y: x * y, [A, B]),
    "rmul": (lambda x: 3.0 * x, [A]),
    "imul": (lambda x, y: torch.relu(x).__imul__(y), [A, B]),
    "multiply": (lambda x, y: torch.multiply(x, y), [A, B]),
    "div": (lambda x: torch.div(x, 3.0), [A]),
    "divide": (lambda x: torch.divide(x, 3.0), [A]),
    "truediv": (lambda x: x / 3.0, [A]),
    "itruediv": (lambda x: torch.relu(x).__itruediv__(3.0), [A]),
    "true_divide": (lambda x: torch.true_divide(x, 3.0), [A]),
    "pow": (lambda x: torch.pow(x, 2), [A]),
    "pow_operator": (lambda x: x**2, [A]),
    "ipow": (lambda x: torch.relu(x).__ipow__(2), [A]),
    "addcmul": (lambda x, y: torch.addcmul(x, y, torch.full(A, 2.0).double(), value=0.5), [A, B]),
    "mean": (lambda x: x.mean((2, 3)), [X2]),
    "sum": (lambda x: torch.sum(x, 1, keepdim=True), [X2]),
    "linear": (F.linear, [(3, 4), (2, 4), (2,)]),
    "matmul": (torch.matmul, [(2, 4), (4, 3)]),
    "matmul_operator": (lambda x, y: x @ y, [(2, 4), (4, 3)]),
    "rmatmul": (lambda x: torch.ones(2, 4).double() @ x, [(4, 3)]),
    "mm": (torch.mm, [(2, 4), (4, 3)]),
    "bmm": (torch.bmm, [(2, 2, 4), (2, 4, 3)]),
    "addmm": (torch.addmm, [(3,), (2, 4), (4, 3)]),
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, padding=1), [X1, (2, 3, 3), (2,)]),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, 2, 1, 1, 2), [X2, (4, 2, 3, 3), (4,)]),
    "conv3d": (F.conv3d, [X3, (2, 2, 2, 2, 2), (2,)]),
    "conv_transpose1d": (F.conv_transpose1d, [X1, (3, 2, 2), (2,)]),
    "conv_transpose2d": (lambda x, w, b: F.conv_transpose2d(x, w, b, 2), [X2, (4, 2, 2, 2), (2,)]),
    "conv_transpose3d": (F.conv_transpose3d, [X3, (2, 1, 2, 2, 2), (1,)]),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), [X2]),
    "batch_norm_affine": (lambda x, g, b: F.batch_norm(x, None, None, g, b, training=True), [(5, 3), (3,), (3,)]),
    "batch_norm_maps": (lambda x, g, b: F.batch_norm(x, None, None, g, b, training=True), [X2, (4,), (4,)]),
    "batch_norm_after_conv": (
        lambda x, w: F.relu(F.batch_norm(F.conv2d(x, w, None, 1, 1), None, None, torch.ones(3).double(), None, True)),
        [X2, (3, 4, 3, 3)],
    ),
    "batch_norm_of_weights_only": (
        lambda w: F.batch_norm(
            F.conv2d(torch.linspace(-1, 2, 128).double().view(X2).sin(), w, None, 1, 1), None, None, None, None, True
        ),
        [(3, 4, 3, 3)],
    ),
    "batch_norm_module": (layer(lambda: nn.BatchNorm2d(4)), [X2]),
    "layer_norm": (lambda x, g, b: F.layer_norm(x, (4,), g, b), [(3, 4), (4,), (4,)]),
    "group_norm": (lambda x, g, b: F.group_norm(x, 2, g, b), [X2, (4,), (4,)]),
    "softmax": (lambda x: F.softmax(x, 1), [A]),
    "log_softmax": (lambda x: F.log_softmax(x, 1), [A]),
    "masked_fill": (lambda x: x.masked_fill(MASK, 0.3), [A]),
    "where": (lambda x, y: torch.where(MASK, x, y), [A, B]),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2), [X2]),
    "pad": (lambda x: F.pad(x, (1, 0, 1, 1)), [X2]),
    "pad_reflect": (lambda x: F.pad(x, (1, 0, 1, 1), mode="reflect"), [X2]),
    "constant_pad_nd": (lambda x: torch.constant_pad_nd(x, (1, 1), 0.5), [X2]),
    "cat": (lambda x, y: torch.cat((x, y), 1), [A, B]),
    "concat": (lambda x, y: torch.concat((x, y), 1), [A, B]),
    "concatenate": (lambda x, y: torch.concatenate((x, y), 1), [A, B]),
    "stack": (lambda x, y: torch.stack((x, y)), [A, B]),
    "hstack": (lambda x, y: torch.hstack((x, y)), [A, B]),
    "vstack": (lambda x, y: torch.vstack((x, y)), [A, B]),
}
for dims, shape in ((1, X1), (2, X2), (3, X3)):
    for kind in ("max", "avg"):
        pool, adaptive = getattr(F, f"{kind}_pool{dims}d"), getattr(F, f"adaptive_{kind}_pool{dims}d")
        CASES[f"{kind}_pool{dims}d"] = (lambda x, f=pool: f(x, 2), [shape])
        CASES[f"adaptive_{kind}_pool{dims}d"] = (lambda x, f=adaptive: f(x, 2), [shape])
        if kind == "max":
            CASES[f"max_pool{dims}d_with_indices"] = (lambda x, f=pool: f(x, 2, return_indices=True)[0], [shape])
            CASES[f"adaptive_max_pool{dims}d_with_indices"] = (
                lambda x, f=adaptive: f(x, 2, return_indices=True)[0],
                [shape],
            )
for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"):
    op = getattr(F, name, None) or getattr(torch, name)
    CASES[name] = (seeded(lambda x, f=op: f(x, 0.4, True)), [X3 if "3" in name else X2 if "1" not in name else X1])
MOVEMENTS: dict[str, Callable[[Any], Any]] = {
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "view": lambda x: x.view(2, -1),
    "view_as": lambda x: x.view_as(torch.zeros(8, 16)),
    "reshape": lambda x: x.reshape(8, 16),
    "permute": lambda x: x.permute(1, 0, 3, 2),
    "transpose": lambda x: x.transpose(1, 2),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "swapdims": lambda x: x.swapdims(1, 2),
    "movedim": lambda x: x.movedim(1, 2),
    "moveaxis": lambda x: x.moveaxis(1, 2),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "t": lambda x: x.flatten(1).t(),
    "T": lambda x: x.flatten(1).T,
    "mT": lambda x: x.mT,
    "iter": lambda x: next(iter(x)),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split(2, 1)[1],
    "tensor_split": lambda x: x.tensor_split(2, 1)[1],
    "unbind": lambda x: x.unbind(1)[1],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x.select(1, 2),
    "ravel": lambda x: x.ravel(),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: torch.channel_shuffle(x, 2),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "fliplr": lambda x: x.fliplr(),
    "flipud": lambda x: x.flipud(),
    "expand": lambda x: x[:1].expand(3, 4, 4, 4),
    "expand_as": lambda x: x[:1].expand_as(torch.zeros(3, 4, 4, 4)),
    "repeat": lambda x: x.repeat(2, 1, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "tile": lambda x: x.tile(2),
    "broadcast_to": lambda x: x[:1].broadcast_to(3, 4, 4, 4),
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 0, 2])),
    "gather": lambda x: x.gather(1, torch.tensor([2, 0]).view(1, 2, 1, 1).expand(2, 2, 4, 4)),
    "take_along_dim": lambda x: x.take_along_dim(torch.tensor([2, 0]).view(1, 2, 1, 1), 1),
    "unfold": lambda x: F.unfold(x, 2),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "to": lambda x: x.to(torch.float64),
    "double": lambda x: x.double(),
    "type_as": lambda x: x.type_as(torch.zeros(1, dtype=torch.float64)),
    "type": lambda x: x.type(torch.float64),
    "getitem": lambda x: x[:, 1:3, ::2],
    "getitem_advanced": lambda x: x[:, torch.tensor([2, 0, 2])],
}
CASES |= {name: (op, [X2]) for name, op in MOVEMENTS.items()}
# Rules that end the gradient, round it or move it to another device, and what is read, not computed.
PACKAGED = frozenset(RULES)  # a doctest or a test may register others
WITHOUT_GRADIENT = {"detach", "data", "requires_grad", "float", "half", "bfloat16", "cpu", "cuda", "setitem"}
OTHER_NAMES = {"truediv", "idiv", "rmatmul", "iter"}  # torch announces these as div, matmul and unbind


def bare(func: Any) -> str:
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":
        name = str(func.__self__.__name__)
    name = name.strip("_")
    return name[1:] if name in ("iadd", "isub", "imul", "itruediv", "ipow", "radd", "rmul") else name


def differentiable(op: Callable[..., Any], shapes: list[tuple[int, ...]]) -> bool:
    g = torch.Generator().manual_seed(len(shapes))
    inputs: list[Tensor] = []
    for shape in shapes:
        # Far enough apart that no largest element changes within a difference.
        loc = torch.randperm(torch.Size(shape).numel(), generator=g).double().view(shape)
        loc = 3 * (loc + 0.3) / loc.numel() - 1.2
        inputs += [loc, 0.1 + torch.rand(shape, generator=g, dtype=torch.float64)]
    for tensor in inputs:
        tensor.requires_grad_()

    def outputs(*flat: Tensor) -> tuple[Tensor, ...]:
        weights = [Moments(a, b) for a, b in zip(flat[::2], flat[1::2], strict=True)]
        result = op(*weights)
        return result.loc, result.variance

    return torch.autograd.gradcheck(outputs, tuple(inputs), atol=1e-7, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    assert differentiable(*CASES[name])


@pytest.mark.parametrize("name", ["relu", "hardswish", "tanh", "gelu", "max_pool1d", "max_pool2d", "max_pool3d"])
def test_rule_in_its_other_form(name: str) -> None:
    with moment_options(relu="first_order", smooth="first_order", max_pool="clark"):
        assert differentiable(*CASES[name])


def test_no_rule_is_missing_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation that has a rule is met by a case, by the name under which users call it."""
    met = set()
    dispatch = registry_module.dispatch

    def noted(func: Any, args: Any, kwargs: Any) -> Any:
        met.add(bare(func))
        return dispatch(func, args, kwargs)

    monkeypatch.setattr(registry_module, "dispatch", noted)
    for op, shapes in CASES.values():
        op(*(Moments(torch.randn(shape).double(), torch.rand(shape).double()) for shape in shapes))
    assert {bare(func) for func in PACKAGED} - met - WITHOUT_GRADIENT - OTHER_NAMES == set()


def test_a_kernels_size_is_heard_through_batch_norm() -> None:
    """d loss / d log‖kernel‖ is not 0 where kernels have a variance of their own: a larger kernel is less noisy."""
    torch.manual_seed(0)
    x, spread = torch.randn(8, 2, 5, 5), torch.full((3, 2, 3, 3), 0.05)
    kernel, log_size = torch.randn(3, 2, 3, 3), torch.zeros((), requires_grad=True)
    weight = Moments.weight(kernel * log_size.exp(), spread, "moments")
    F.relu(F.batch_norm(F.conv2d(x, weight), None, None, None, None, True)).variance.sum().log().backward()
    assert log_size.grad is not None and float(log_size.grad) < -0.5
