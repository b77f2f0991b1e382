"""Sizes of the built-in nets, and the parts that are easy to get wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyrobnn import nets
from pyrobnn.errors import NetError


def macs(net: nn.Module, x: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers, counted by hooks."""
    total = 0

    def hook(module: Any, args: Any, output: torch.Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += module.weight.numel() * positions

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(hook)
    net.eval()(x)
    return total


@pytest.mark.parametrize(
    ("name", "shape", "params", "expected_macs"),
    [
        ("lenet5", (1, 28, 28), 431_080, 2_293_000),
        ("lenet300", (1, 28, 28), 266_610, 266_200),
        ("vgg16", (3, 32, 32), 14_991_946, 313_463_808),
        ("resnet20", (3, 32, 32), 269_722, 40_551_040),
        ("resnet32", (3, 32, 32), 464_154, 68_862_592),
        ("resnet56", (3, 32, 32), 853_018, 125_485_696),
        ("resnet110", (3, 32, 32), 1_727_962, 252_887_680),
    ],
)
def test_published_sizes(name: str, shape: tuple[int, int, int], params: int, expected_macs: int) -> None:
    net = nets.build(name, in_channels=shape[0], image_size=shape[1])
    assert sum(parameter.numel() for parameter in net.parameters()) == params
    assert macs(net, torch.randn(1, *shape)) == expected_macs


def test_vgg_is_torchvisions_feature_extractor() -> None:
    import torchvision

    reference = torchvision.models.vgg16_bn(weights=None).features
    net = nets.vgg16()
    net.features.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net.features.eval()(x), reference.eval()(x), rtol=0, atol=0)


def test_option_a_shortcut_is_subsampling_and_zero_padding() -> None:
    block = nets.BasicBlock(16, 32, stride=2).eval()
    x = torch.randn(2, 16, 8, 8)
    padded = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    expected = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))) + padded)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_resnet_keys_are_those_of_the_published_weights() -> None:
    keys = set(nets.resnet20().state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer3.2.conv2.weight", "linear.bias"} <= keys
    assert {key for key in keys if "shortcut" in key} == {
        f"layer{stage}.0.shortcut.{buffer}" for stage in (2, 3) for buffer in ("index", "weight")
    }


def test_channel_map_moves_gradients_to_the_channels_it_copied() -> None:
    channel_map = nets.ChannelMap(2, 5, offset=2)
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    out = channel_map(x)
    assert out[:, [0, 1, 4]].abs().max() == 0
    torch.testing.assert_close(out[:, 2:4], x)
    out.sum().backward()
    assert x.grad is not None and bool((x.grad == 1).all())
    assert channel_map(x.detach().bfloat16()).dtype == torch.bfloat16


def test_channel_map_refuses_what_cannot_fit() -> None:
    with pytest.raises(ValueError, match="out_channels"):
        nets.ChannelMap(4, 4, offset=1)


def test_lenet_needs_room_for_its_kernels() -> None:
    with pytest.raises(NetError, match="at least 16x16, got 8x8"):
        nets.lenet5(image_size=8)


@pytest.mark.parametrize("name", ["small_cnn", "lenet5", "vgg16", "resnet20"])
def test_every_parameter_gets_a_gradient_and_classes_are_counted(name: str) -> None:
    net = nets.build(name, num_classes=7, in_channels=2, image_size=32)
    out = net.train()(torch.randn(3, 2, 32, 32))
    assert out.shape == (3, 7)
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", ["small_cnn", "lenet5", "lenet300", "vgg16", "resnet20"])
@pytest.mark.parametrize("sides", [(20, 32), (40, 17), (32, 32)])
def test_images_need_not_be_square(name: str, sides: tuple[int, int]) -> None:
    net = nets.build(name, num_classes=3, in_channels=2, image_size=sides).eval()
    assert net(torch.randn(2, 2, *sides)).shape == (2, 3)
    if sides == (32, 32):
        assert {n: v.shape for n, v in net.state_dict().items()} == {
            n: v.shape for n, v in nets.build(name, num_classes=3, in_channels=2, image_size=32).state_dict().items()
        }
