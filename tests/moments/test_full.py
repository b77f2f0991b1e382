"""Full covariance per map, against sampled networks and against closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import pyrobnn as pb
from pyrobnn.errors import ConfigError, NetError
from pyrobnn.inference.elbo import ELBO
from pyrobnn.moments import FullMoments, Moments, moment_options, propagate
from pyrobnn.moments.full import full
from pyrobnn.priors.tensor_normal import TensorNormal

Weights = dict[str, tuple[Tensor, Tensor]]


def covariance(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance over the first axis, per example: [S, B, D] -> [B, D], [B, D, D]."""
    draws = draws.double()
    mean = draws.mean(0)
    return mean, torch.einsum("sbi,sbj->bij", draws - mean, draws - mean) / (len(draws) - 1)


def sampled(net: nn.Module, weights: Weights, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    drawn = {n: m + v.sqrt() * torch.randn((count, *m.shape), generator=g) for n, (m, v) in weights.items()}
    with torch.no_grad():
        return covariance(torch.vmap(lambda w: functional_call(net, w, (x,)).flatten(1), chunk_size=2000)(drawn))


def random_weights(net: nn.Module, relative: float, per_kernel: bool) -> Weights:
    found = {}
    for name, p in net.named_parameters():
        if p.dim() > 1:
            spread = relative**2 * p.detach().square().mean()
            shape = (p.shape[0], *[1] * (p.dim() - 1)) if per_kernel else p.shape
            found[name] = (p.detach(), (2 * spread * torch.rand(shape)).expand(p.shape))
    return found


def correlation(c: Tensor) -> Tensor:
    std = c.diagonal(dim1=1, dim2=2).sqrt()
    return c / (std.unsqueeze(1) * std.unsqueeze(2))


@pytest.mark.parametrize("per_kernel", [False, True])
@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}])
def test_two_convolutions_are_exact(per_kernel: bool, geometry: dict[str, object]) -> None:
    """Without nonlinearities the three-term form is the covariance itself (positions of a map, by map).

    20,000 draws: a correlation is known to about 0.007, a variance to 1 %.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2, **geometry))  # type: ignore[arg-type]
    x = torch.randn(2, 1, 6, 6)
    weights = random_weights(net, 0.5, per_kernel)
    weights["0.bias"] = (net[0].bias.detach(), torch.tensor([0.02, 0.04]))
    mean, wanted = sampled(net, weights, x, 20_000)
    got_mean, got = propagate(net, weights, x, covariance="full")
    std = wanted.diagonal(dim1=1, dim2=2).sqrt()
    assert ((got_mean.flatten(1) - mean).abs() < 5 * std / 20_000**0.5).all()
    size = got.shape[1] // 2
    for map_ in (slice(0, size), slice(size, None)):
        a, b = got[:, map_, map_].detach().double(), wanted[:, map_, map_]
        torch.testing.assert_close(correlation(a), correlation(b), rtol=0, atol=0.04)
        torch.testing.assert_close(a.diagonal(dim1=1, dim2=2), b.diagonal(dim1=1, dim2=2), rtol=0.06, atol=1e-7)


@pytest.mark.parametrize("per_kernel", [False, True])
def test_linear_layers_are_exact(per_kernel: bool) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    x = torch.randn(3, 5)
    weights = random_weights(net, 0.6, per_kernel)
    _, wanted = sampled(net, weights, x, 30_000)
    got = propagate(net, weights, x, covariance="full")[1].detach().double()
    torch.testing.assert_close(correlation(got), correlation(wanted), rtol=0, atol=0.03)
    torch.testing.assert_close(got.diagonal(dim1=1, dim2=2), wanted.diagonal(dim1=1, dim2=2), rtol=0.05, atol=0)


def test_relu_off_the_diagonal() -> None:
    """E f' E f' C against draws of a correlated pair: exact variances, covariances to 10 % of their scale."""
    torch.manual_seed(2)
    mean = torch.tensor([[0.3, -0.2, 1.5]])
    root = 0.6 * torch.randn(3, 3)
    c = root @ root.T
    x = full(mean, c.view(1, 1, 3, 3))
    y = torch.relu(x)
    assert isinstance(y, FullMoments)
    draws = torch.relu(mean[0] + torch.randn(200_000, 3) @ root.T)
    _, wanted = covariance(draws.unsqueeze(1))
    torch.testing.assert_close(y.variance[0].double(), wanted[0].diagonal(), rtol=0.02, atol=1e-4)
    scale = wanted[0].diagonal().sqrt()
    assert ((y.covariance[0] - wanted[0]).abs() / torch.outer(scale, scale)).max() < 0.1
    with moment_options(covariance="published"):
        first_order = torch.relu(x)
    slope = (mean[0] > 0).float()
    torch.testing.assert_close(first_order.covariance[0], c * torch.outer(slope, slope))


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "silu", "elu", "softplus"])
def test_smooth_activations(name: str) -> None:
    """A linear stretch of the covariance by E f' (Stein), against draws; small spread, so that it is sharp."""
    torch.manual_seed(3)
    f = getattr(F, name) if hasattr(F, name) else getattr(torch, name)
    mean, root = torch.tensor([[0.5, -0.3]]), torch.tensor([[0.2, 0.0], [0.15, 0.1]])
    y = f(full(mean, (root @ root.T).view(1, 1, 2, 2)))
    _, wanted = covariance(f(mean[0] + torch.randn(300_000, 2) @ root.T).unsqueeze(1))
    torch.testing.assert_close(y.covariance[0].double(), wanted[0], rtol=0.04, atol=1e-5)


def test_a_whole_network_is_closer_than_the_diagonal() -> None:
    """conv-ReLU-pool-conv-ReLU-average-linear-tanh-linear at 5 % noise: standard deviations to 12 %.

    The diagonal loses the correlation of positions that share a kernel: 22 % here, after averaging.
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )
    x = torch.randn(3, 1, 10, 10)
    weights = random_weights(net, 0.05, True)
    mean, wanted = sampled(net, weights, x, 6_000)
    std = wanted.diagonal(dim1=1, dim2=2).sqrt()
    error = {}
    for how in ("diagonal", "full", "published"):
        got_mean, got = propagate(net, weights, x, covariance=how)
        found = got if how == "diagonal" else got.diagonal(dim1=1, dim2=2)
        error[how] = float((found.detach().sqrt() / std - 1).abs().max())
        assert ((got_mean.detach() - mean).abs() / std).max() < 0.15
        if how == "full":
            assert (correlation(got.detach().double()) - correlation(wanted)).abs().max() < 0.15
    assert error["full"] < 0.14 and error["full"] < error["diagonal"] and error["published"] < 0.3


def test_published_form_by_hand() -> None:
    """A later convolution keeps only the diagonal of what comes in: σ² X'X + diag(v * M² + σ² * v)."""
    torch.manual_seed(4)
    m, s2 = torch.randn(2, 2, 2, 2), torch.tensor([0.1, 0.3])
    mean, root = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 9, 9)
    x = full(mean, root @ root.mT)
    weight = Moments.weight(m, s2.view(2, 1, 1, 1).expand(m.shape), "moments")
    with moment_options(covariance="published"):
        y = F.conv2d(x, weight)
    patches = F.unfold(mean, 2)[0].T  # [positions, taps]
    v = (root @ root.mT).diagonal(dim1=2, dim2=3).reshape(1, 2, 3, 3)
    v_patches = F.unfold(v, 2)[0].T
    for k in range(2):
        wanted = s2[k] * patches @ patches.T + torch.diag(
            v_patches @ m[k].flatten().square() + s2[k] * v_patches.sum(1)
        )
        torch.testing.assert_close(y.blocks[0, k], wanted, rtol=1e-4, atol=1e-4)


def test_softmax_and_batch_norm() -> None:
    torch.manual_seed(5)
    root = torch.randn(1, 1, 4, 4)
    x = full(torch.randn(1, 4), root @ root.mT)
    p = torch.softmax(x._loc, -1)[0]
    jacobian = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(F.softmax(x, -1).covariance[0], jacobian @ (root @ root.mT)[0, 0] @ jacobian)
    norm = nn.BatchNorm2d(2).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 0.5]))
        norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    maps = full(torch.randn(1, 2, 2, 2), (root @ root.mT).expand(1, 2, 4, 4))
    got = norm(maps).blocks
    torch.testing.assert_close(got, maps.blocks * torch.tensor([1.0, 1.0]).view(1, 2, 1, 1), rtol=1e-4, atol=1e-5)


def test_it_trains() -> None:
    """The option is in force inside a fit's loss as well; every guide parameter gets a gradient."""
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    model = pb.BayesianModel(net, TensorNormal("fan_in"), data_size=50)
    guide = pb.guides.KernelMeanField(model)
    x, y = torch.randn(6, 1, 8, 8), torch.randint(10, (6,))
    with moment_options(covariance="full"):
        parts = ELBO(estimator="moments").parts(model, guide, x, y)
        (parts.nll + parts.total_kl(parts.nll)).backward()
    assert torch.isfinite(parts.nll) and parts.output.shape == (6, 10)
    for name, p in guide.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name


def test_refusals() -> None:
    big = nn.Conv2d(1, 64, 3)
    with pytest.raises(NetError, match=r"covariance of 64 maps of 14884 positions for 1 examples takes 1.4e\+10"):
        propagate(big, {"weight": (big.weight, torch.ones(()))}, torch.zeros(1, 1, 124, 124), covariance="full")
    grouped = nn.Conv2d(2, 2, 3, groups=2)
    with pytest.raises(NetError, match="a grouped convolution has no full-covariance rule"):
        propagate(grouped, {"weight": (grouped.weight, torch.ones(()))}, torch.zeros(1, 2, 5, 5), covariance="full")
    hard = nn.Sequential(nn.Linear(2, 2), nn.Hardswish())
    with pytest.raises(NetError, match=r"no rule carries a full covariance through .*hardswish.* in module '1'"):
        propagate(hard, {"0.weight": (hard[0].weight, torch.ones(()))}, torch.zeros(1, 2), covariance="full")
    with pytest.raises(ConfigError, match="moment option covariance"):
        propagate(hard, {}, torch.zeros(1, 2), covariance="dense")
