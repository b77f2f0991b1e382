"""Every kind of torchvision classifier, and our own networks, cut exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_pruning
import torchvision
from torch import Tensor, nn

from pyrobnn import nets
from pyrobnn.channels import ChannelTable, channel_groups

OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "lenet5": (nets.lenet5, (1, 28, 28)),
    "lenet300": (nets.lenet300, (1, 28, 28)),
    "small_cnn": (nets.small_cnn, (1, 8, 8)),
    "resnet20": (nets.resnet20, (3, 32, 32)),
    "resnet56": (nets.resnet56, (3, 32, 32)),
    "vgg16": (nets.vgg16, (3, 32, 32)),
}


def build(name: str) -> nn.Module:
    quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return getattr(torchvision.models, name)(weights=None, num_classes=10, **quiet)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", OWN)
def test_own(name: str, exact: Callable[..., ChannelTable]) -> None:
    make, shape = OWN[name]
    table = exact(make(), torch.randn(2, *shape))
    assert list(table.refused.values()) == ["reaches the network's output"]


# Name, pixels, units that can be removed at least, groups refused besides the classifier.
WALK = [
    ("alexnet", 64, 9000, 0),
    ("vgg11_bn", 32, 10000, 0),
    ("resnet18", 64, 2800, 0),
    ("resnet50", 64, 11000, 0),
    ("resnext50_32x4d", 64, 4000, 0),
    ("wide_resnet50_2", 64, 15000, 0),
    ("densenet121", 64, 9000, 0),
    ("googlenet", 64, 9000, 2),
    ("mobilenet_v2", 64, 6500, 0),
    ("mobilenet_v3_large", 64, 8500, 0),
    ("shufflenet_v2_x1_0", 64, 3000, None),
    ("squeezenet1_1", 64, 2900, 0),
    ("mnasnet1_0", 64, 10000, 0),
    ("efficientnet_b0", 64, 11000, 0),
    ("efficientnet_v2_s", 64, 20000, 0),
    ("regnet_y_400mf", 64, 2300, 0),
]


LARGE = ("vgg11_bn", "wide_resnet50_2", "efficientnet_v2_s", "alexnet", "densenet121")
ROWS = [pytest.param(*row, id=row[0], marks=[pytest.mark.slow] if row[0] in LARGE else []) for row in WALK]


@pytest.mark.parametrize(("name", "pixels", "units", "refused"), ROWS)
def test_torchvision(
    name: str, pixels: int, units: int, refused: int | None, exact: Callable[..., ChannelTable]
) -> None:
    table = exact(build(name), torch.randn(2, 3, pixels, pixels))
    assert table.units > units
    if refused is not None:
        assert list(table.refused.values()) == ["reaches the network's output"] * (1 + refused)


def test_inception(exact: Callable[..., ChannelTable]) -> None:
    """Its auxiliary head runs only in training, and only on large images."""
    net = build("inception_v3")
    with pytest.warns(UserWarning, match="train mode failed.*Output size is too small"):
        table = channel_groups(net, torch.randn(2, 3, 80, 80), try_cut=False)
    assert "AuxLogits.conv0.conv" not in table
    table = channel_groups(net, torch.randn(1, 3, 299, 299), try_cut=False)
    assert table["AuxLogits.conv0.conv"].channels == 128
    exact(net, torch.randn(2, 3, 80, 80), table=table, train=False, macs=False)


def _as_module_cuts(table: ChannelTable) -> dict[str, tuple[set[str], set[str]]]:
    """Per group: modules whose outputs, and modules whose inputs, are cut."""
    cuts = {}
    for group in table:
        outs = {m.tensor.rpartition(".")[0] for m in group.members if m.role in ("out", "through")}
        cuts[group.name] = (outs, {m.tensor.rpartition(".")[0] for m in group.members if m.role == "in"})
    return cuts


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2"])
def test_agrees_with_torch_pruning(name: str) -> None:
    """Torch-Pruning's dependency graph as an oracle, on networks that it reads correctly."""
    net, x = build(name), torch.randn(1, 3, 64, 64)
    table = channel_groups(net, x, try_cut=False)
    module_name = {module: path for path, module in net.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(net, x)
    ours = _as_module_cuts(table)
    checked = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        outs, ins = set(), set()
        for dependency, _ in group:
            path = module_name.get(dependency.target.module)
            if path is None:  # an operation of the graph, not a layer
                continue
            if dependency.handler.__name__.startswith("prune_") and "in_channels" in dependency.handler.__name__:
                depthwise = getattr(dependency.target.module, "groups", 1) > 1
                (outs if depthwise or _is_norm(dependency.target.module) else ins).add(path)
            else:
                outs.add(path)
        (mine,) = [key for key, (rows, _) in ours.items() if rows & outs] or [None]
        if mine is None:
            assert outs <= set(table.refused)
            continue
        assert ours[mine] == (outs, ins)
        checked.add(mine)
    assert checked == set(table.names)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


def test_reading_leaves_the_network_and_the_random_state_alone() -> None:
    net = nets.resnet20()
    net.train()
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    before: dict[str, Tensor] = {name: value.clone() for name, value in net.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    modes = [module.training for module in net.modules()]
    state = torch.get_rng_state()
    channel_groups(net, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True) if p.grad is not None)
    assert [module.training for module in net.modules()] == modes
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
