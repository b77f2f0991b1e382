"""Networks as users write them inside the model: checkpointed, tied, frozen, in place on their input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pyrobnn as pb
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.precision import choose_layout
from pyrobnn.nets.calling import takes_plain_only
from pyrobnn.nets.recomputing import recomputed_tensor


class Checkpointed(nn.Module):
    """Two of four convolutions are computed again in the backward pass, in the way that is given."""

    def __init__(self, how: str, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Conv2d(6, 6, 3, padding=1),
        )
        self.head = nn.Linear(6, 5)

    def run(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        if self.how == "plain":
            x = self.body(x)
        elif self.how == "sequential":
            x = checkpoint_sequential(self.body, 2, x, use_reentrant=False)
        elif self.how == "closure":
            x = checkpoint(lambda y: self.run(y), x, use_reentrant=False)
        elif self.how == "twice":
            x = checkpoint(self.body, checkpoint(self.body, x, use_reentrant=True), use_reentrant=False)
        elif self.how == "plain twice":
            x = self.body(self.body(x))
        else:
            x = checkpoint(self.body, x, use_reentrant=self.how == "reentrant")
        return self.head(x.mean((2, 3)))


PRIORS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "gaussian": lambda: pb.priors.Gaussian("fan_in"),
    "mixture": lambda: pb.priors.ScaleMixture(),
}


def gradients(net: nn.Module, prior: Any, estimator: str = "weight") -> dict[str, Tensor]:
    x, y = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 5
    model = pb.BayesianModel(net, prior, data_size=100)
    guide = pb.guides.MeanField(model) if prior is not None else lambda x, y=None: None
    torch.manual_seed(1)
    ELBO(num_particles=2, estimator=estimator).differentiable_loss(model, guide, x, y).backward()
    named = [*model.named_parameters(), *(guide.named_parameters() if prior is not None else [])]
    assert all(p.grad is not None for _, p in named)
    return {name: p.grad for name, p in named}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "sequential", "closure", "twice"])
def test_gradients_through_checkpoints(how: str, prior: str) -> None:
    wanted = gradients(Checkpointed("plain twice" if how == "twice" else "plain"), PRIORS[prior]())
    got = gradients(Checkpointed(how), PRIORS[prior]())
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        assert torch.allclose(got[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())), name


def test_statistics_move_once_through_checkpoints() -> None:
    x, y = torch.randn(8, 1, 6, 6), torch.arange(8) % 5
    found = {}
    for how in ("plain", "reentrant", "not reentrant"):
        model = pb.BayesianModel(Checkpointed(how, norm=True), pb.priors.Gaussian("fan_in"), data_size=100)
        torch.manual_seed(1)
        ELBO().differentiable_loss(model, pb.guides.MeanField(model), x, y).backward()
        found[how] = model.bare_net.body[1].running_mean.clone(), int(model.bare_net.body[1].num_batches_tracked)
    for how in ("reentrant", "not reentrant"):
        assert torch.allclose(found[how][0], found["plain"][0], atol=1e-6) and found[how][1] == 1


@pytest.mark.parametrize("estimator", ["local", "moments"])
def test_checkpoints_go_with_sampled_weights_only(estimator: str) -> None:
    with pytest.raises(
        pb.ConfigError, match=r"torch.utils.checkpoint; 'body.0.weight' is read there.*estimator='weight'"
    ):
        gradients(Checkpointed("not reentrant"), PRIORS["gaussian"](), estimator)


def test_what_is_computed_again_is_found() -> None:
    x = torch.randn(2, 1, 6, 6)
    assert recomputed_tensor(Checkpointed("plain"), x) is None
    assert recomputed_tensor(Checkpointed("closure"), x) == "body.0.weight"
    shortcuts = pb.nets.build("resnet20", in_channels=3, image_size=32)  # their gradient reads an index of the network
    assert recomputed_tensor(shortcuts, torch.randn(2, 3, 32, 32)) is None
    thrifty = torchvision.models.DenseNet(4, (2, 2), 8, memory_efficient=True, num_classes=5)
    assert "denselayer" in (recomputed_tensor(thrifty, torch.randn(2, 3, 32, 32)) or "")


# Tied


class Tied(nn.Module):
    """One weight in two or three layers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
        self.head = nn.Linear(6, 10)
        if how in ("weight", "three"):
            self.b.weight = self.a.weight
        if how == "three":
            self.c.weight = self.a.weight
        if how == "bias":
            self.b.bias = self.a.bias
        if how == "norm":
            self.norms[1].weight = self.norms[0].weight
        if how == "module":
            self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.norms[0](self.a(x)).relu()
        x = self.norms[1](self.b(x)).relu()
        return self.head(self.c(x).relu().mean((2, 3)))


def aliases(net: nn.Module) -> list[set[str]]:
    """Names of one tensor, for every tensor with several."""
    found: dict[int, set[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), set()).add(name)
    return [names for names in found.values() if len(names) > 1]


@pytest.mark.parametrize("how", ["weight", "three", "bias", "norm", "module"])
@pytest.mark.parametrize("prior", ["gaussian", "everything"])
def test_aliases_stay_aliases(how: str, prior: str) -> None:
    data = pb.load_data("digits")
    net = Tied(how)
    wanted, size = aliases(net), sum(p.numel() for p in net.parameters())
    assert wanted
    table = pb.channel_groups(net, data.example)
    assert table.cost().params == size
    chosen = pb.priors.Gaussian("fan_in") if prior == "gaussian" else pb.priors.Gaussian(0.1, select="*")
    model = pb.BayesianModel(net, chosen, data_size=len(data.train), groups=table)
    guide = pb.guides.MeanField(model)
    model.to(memory_format=torch.channels_last)  # makes other tensors of tied buffers
    x, y = data.train.normalise(data.train.images[:64]), data.train.labels[:64]
    ELBO().differentiable_loss(model, guide, x, y).backward()
    mean = pb.deterministic_net(model, guide)
    assert aliases(mean) == wanted and sum(p.numel() for p in mean.parameters()) == size
    plan = pb.PruningPlan({g.name: list(range(0, g.channels, 2)) for g in table}, table.widths())
    small, less = pb.shrink(model, guide, plan)
    after = pb.deterministic_net(small, less)
    compact = pb.compact(mean, plan, None, table)
    assert aliases(after) == aliases(compact) == wanted
    assert sum(p.numel() for p in after.parameters()) == table.after(plan).cost().params
    assert torch.allclose(after.eval()(x), compact.eval()(x), atol=1e-5)


# Frozen


@pytest.mark.parametrize("frozen", ["stem", "a", "head", "a.bias", "norms.0"])
@pytest.mark.parametrize("prior", ["gaussian", "noise"])
def test_frozen_tensors_keep_value_flag_and_place(frozen: str, prior: str) -> None:
    data = pb.load_data("digits")
    net = Tied("weight")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    flags = [(name, p.requires_grad) for name, p in net.named_parameters()]
    table = pb.channel_groups(net, data.example)
    chosen = pb.priors.Gaussian("fan_in") if prior == "gaussian" else pb.priors.ARDNoise()
    model = pb.BayesianModel(net, chosen, data_size=len(data.train), groups=table)
    guide = pb.guides.MeanField(model)
    small = pb.load_data("digits")
    pb.fit(model, guide, small, epochs=1, lr=1e-2, progress=False, validate=False)
    reads = {m.tensor for g in table for m in g.members if m.reads}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        out = pb.deterministic_net(model, guide)
    assert [(name, p.requires_grad) for name, p in out.named_parameters()] == flags
    before = dict(net.named_parameters())
    folded = set()
    for name, parameter in out.named_parameters():
        if name.startswith(frozen):
            if prior == "noise" and name in reads:
                folded.add(name)
            else:
                assert torch.equal(parameter, before[name]), name
    assert {name for name in before for w in said if repr(name) in str(w.message)} == folded


def test_nothing_but_frozen_weights_is_refused() -> None:
    with pytest.raises(pb.ConfigError, match="frozen"):
        pb.BayesianModel(Tied("weight").requires_grad_(False), pb.priors.Gaussian("fan_in"), data_size=10)


# In place, and layouts


class Shifted(nn.Module):
    def __init__(self, inplace: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inplace, self.body = inplace, nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(96, 5))

    def forward(self, x: Tensor) -> Tensor:
        if self.inplace == "arithmetic":
            x.sub_(0.5).mul_(2.0)
        elif self.inplace == "slice":
            x[:] = (x - 0.5) * 2.0
        elif self.inplace == "view":
            x.view(-1).sub_(0.5).mul_(2.0)
        else:
            x = (x - 0.5) * 2.0
        return self.body(x)


@pytest.mark.parametrize("inplace", ["arithmetic", "slice", "view"])
def test_every_pass_sees_the_same_batch(inplace: str) -> None:
    x, y = torch.rand(8, 1, 6, 6), torch.arange(8) % 5
    found = {}
    for how in ("no", inplace):
        model = pb.BayesianModel(Shifted(how), pb.priors.Gaussian("fan_in"), data_size=100)
        guide, images = pb.guides.MeanField(model), x.clone()
        torch.manual_seed(1)
        loss = ELBO(num_particles=3).loss(model, guide, images, y)
        found[how] = loss, pb.predict(model, guide, images, draws=3).probs
        assert torch.equal(images, x)
    assert found[inplace][0] == pytest.approx(found["no"][0], rel=1e-5)
    assert torch.allclose(found[inplace][1], found["no"][1], atol=1e-5)


class Flat(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.how, self.head = nn.Conv2d(3, 6, 3), how, nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.how(self.conv(x)))


class BackwardView(torch.autograd.Function):
    """Fails channels-last in the backward pass alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].view(-1).mul(2).view(ctx.shape)


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "reshape": (lambda x: x.reshape(len(x), -1), False),
    "flatten": (lambda x: x.relu().flatten(1), False),
    "view": (lambda x: x.view(x.size(0), -1), True),
    "view by features": (lambda x: x.view(-1, 96), True),
    "view of tokens": (lambda x: x.view(x.size(0), x.size(1), -1).flatten(1), False),
    "as_strided": (lambda x: x.as_strided((len(x), 96), (96, 1)), True),
    "in the backward pass": (lambda x: F.conv2d(BackwardView.apply(x), torch.eye(6)[..., None, None]).flatten(1), True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_tried(name: str) -> None:
    how, wanted = LAYOUTS[name]
    net, x = Flat(how), torch.randn(4, 3, 6, 6)
    state = {n: v.clone() for n, v in net.state_dict().items()}
    choose_layout(net, x)
    assert takes_plain_only(net) == wanted
    assert all(torch.equal(v, state[n]) for n, v in net.state_dict().items())


def test_a_gradient_that_is_not_finite_is_no_matter_of_layout() -> None:
    net = Flat(lambda x: (x.relu() * 0).sqrt().flatten(1))
    choose_layout(net, torch.randn(4, 3, 6, 6))
    assert not takes_plain_only(net)
