"""Whole networks: moments of the logits against sampled networks, torchvision unchanged, layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pyrobnn.errors import NetError
from pyrobnn.moments import Moments, moment_options, propagate, second_order_log_likelihood


class SmallLeNet(nn.Module):
    """LeNet-5's layers at a tenth of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 5)
        self.fc1, self.fc2 = nn.Linear(128, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class Block(nn.Module):
    """A basic residual block with an option-A style shortcut."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.stride, self.extra = stride, cout - cin

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        out += F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu_(out)


def small_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        Block(8, 8, 1),
        Block(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def random_weights(net: nn.Module, relative: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Standard deviation of each weight: `relative` times the rms of its tensor."""
    return {
        name: (p.detach(), (relative**2 * p.detach().square().mean()).expand(p.shape).contiguous())
        for name, p in net.named_parameters()
        if p.dim() > 1
    }


def sampled_logits(net: nn.Module, weights: dict[str, tuple[Tensor, Tensor]], x: Tensor, draws: int) -> Tensor:
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return torch.stack(
            [
                functional_call(
                    net,
                    {n: m + v.sqrt() * torch.empty_like(m).normal_(generator=g) for n, (m, v) in weights.items()},
                    (x,),
                )
                for _ in range(draws)
            ]
        ).double()


@pytest.mark.parametrize("name", ["lenet", "resnet"])
def test_moments_of_the_logits_agree_with_sampled_networks(name: str) -> None:
    """Weights with 5 % noise: means to 0.25 standard deviations, standard deviations to a factor 0.6 to 1.5.

    What is left is the price of the diagonal: activations that share a kernel are correlated, which
    average pooling over the whole map shows most (the standard deviation comes out too small).
    """
    torch.manual_seed(0)
    net = SmallLeNet() if name == "lenet" else small_resnet()
    x = torch.randn(4, 1, 28, 28) if name == "lenet" else torch.randn(4, 3, 12, 12)
    if name == "resnet":
        with torch.no_grad():
            for _ in range(60):  # settle the running statistics
                net(x + 0.3 * torch.randn_like(x))
    net.eval()
    weights = random_weights(net, 0.05)
    with torch.no_grad():
        mean, variance = propagate(net, weights, x)
    draws = sampled_logits(net, weights, x, 1500)
    std = draws.std(0)
    assert ((mean - draws.mean(0)).abs() / std).max() < 0.25
    ratio = variance.sqrt() / std
    assert ratio.min() > 0.6 and ratio.max() < 1.5


def test_one_layer_networks_are_exact() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten())
    x = torch.randn(2, 2, 5, 5)
    weights = random_weights(net, 0.5)
    with torch.no_grad():
        mean, variance = propagate(net, weights, x)
    draws = sampled_logits(net, weights, x, 8_000)
    std = torch.maximum(draws.std(0), variance.sqrt())  # rare activations may never occur in the draws
    assert ((mean - draws.mean(0)).abs() <= 5 * std / 8_000**0.5 + 1e-5).all()
    torch.testing.assert_close(variance.double(), draws.var(0), rtol=0.15, atol=1e-3)


def test_propagate_forms() -> None:
    net = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    mean, variance = propagate(net, {}, x)
    torch.testing.assert_close(mean, net(x))
    assert (variance == 0).all()
    mean, variance = propagate(net, {}, (x, torch.ones(4, 3)))
    torch.testing.assert_close(variance, net.weight.square().sum(1).expand(4, 2))
    local = Moments.weight(net.weight, torch.ones(2, 3), "local")
    torch.testing.assert_close(propagate(net, {"weight": local}, x)[1], x.square().sum(1, keepdim=True).expand(4, 2))
    with pytest.raises(NetError, match="one tensor, got tuple"):
        propagate(nn.MaxPool2d(2, return_indices=True), {}, torch.ones(1, 1, 2, 2))


def test_zero_variance_reproduces_the_network() -> None:
    torch.manual_seed(2)
    net = small_resnet().eval()
    x = torch.randn(2, 3, 12, 12)
    weights = {n: (p.detach(), torch.zeros(())) for n, p in net.named_parameters() if p.dim() > 1}
    for options in ({}, {"relu": "first_order"}):
        with torch.no_grad(), moment_options(**options):
            mean, variance = propagate(net, weights, x)
            torch.testing.assert_close(mean, net(x))
        assert variance.abs().max() < 1e-10


def test_every_parameter_gets_a_gradient_in_training_mode() -> None:
    torch.manual_seed(3)
    net = small_resnet()
    x, y = torch.randn(6, 3, 12, 12), torch.randint(10, (6,))
    spreads = {n: torch.full_like(p, -4.0).requires_grad_() for n, p in net.named_parameters() if p.dim() > 1}
    parameters = dict(net.named_parameters())
    weights = {n: (parameters[n], rho.exp().square()) for n, rho in spreads.items()}
    mean, variance = propagate(net, weights, x)
    (-second_order_log_likelihood(mean, variance, y).mean()).backward()
    for name, p in [*parameters.items(), *spreads.items()]:
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name


def test_gradients_match_finite_differences() -> None:
    """In double precision, through convolution, norm, ReLU, pooling and linear layers."""
    torch.manual_seed(4)
    net = (
        nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2, 2, 2, groups=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 2),
        )
        .double()
        .eval()
    )
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    m = net[0].weight.detach().requires_grad_()
    v = torch.rand_like(m).requires_grad_()
    m2 = net[4].weight.detach().requires_grad_()
    v2 = torch.rand_like(m2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: propagate(net, {"0.weight": (a, b), "4.weight": (c, d)}, x), (m, v, m2, v2)
    )


@pytest.mark.parametrize("per_filter", [False, True])
def test_channels_last_gives_the_same_numbers_and_keeps_the_layout(per_filter: bool) -> None:
    torch.manual_seed(5)
    net = small_resnet().eval()[:5]
    x = torch.randn(2, 3, 12, 12)
    weights = {
        n: (p.detach(), torch.rand(p.shape[0], 1, 1, 1) * 1e-3 if per_filter else torch.rand_like(p) * 1e-3)
        for n, p in net.named_parameters()
        if p.dim() == 4
    }
    with torch.no_grad():
        expected = propagate(net, weights, x)
        got = propagate(
            net.to(memory_format=torch.channels_last),
            {n: (m.to(memory_format=torch.channels_last), v) for n, (m, v) in weights.items()},
            x.to(memory_format=torch.channels_last),
        )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for t in got:
        assert t.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["local", "moments"])
@pytest.mark.parametrize("bf16", [False, True])
def test_torchvision_resnet18_runs_unchanged(mode: str, bf16: bool) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(6)
    net = torchvision.models.resnet18(num_classes=5)
    x, y = torch.randn(2, 3, 48, 48), torch.tensor([1, 3])
    parameters = dict(net.named_parameters())
    rho = {n: torch.full_like(p, -6.0).requires_grad_() for n, p in parameters.items() if p.dim() > 1}
    weights = {n: Moments.weight(parameters[n], r.exp().square(), mode, name=n) for n, r in rho.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = functional_call(net, weights, (x,))
    if mode == "local":
        assert type(out) is Tensor and out.dtype == (torch.bfloat16 if bf16 else torch.float32)
        F.cross_entropy(out.float(), y).backward()
    else:
        assert isinstance(out, Moments) and out.variance.dtype == torch.float32
        (-second_order_log_likelihood(out.loc, out.variance, y).mean()).backward()
    for name, p in [*parameters.items(), *rho.items()]:
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    assert sum(bool(r.grad.any()) for r in rho.values()) == len(rho)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "densenet121"])
def test_other_torchvision_networks_propagate(name: str) -> None:
    """Depthwise, squeeze-and-excite, channel shuffle, concatenation: all operations have rules."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(7)
    net = torchvision.models.get_model(name, weights=None, num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        mean, variance = propagate(net, random_weights(net, 0.01), x)
        plain = net(x)
    assert torch.isfinite(mean).all() and (variance > 0).all()
    assert (mean - plain).abs().max() < 5 * variance.max().sqrt() + 1e-3
