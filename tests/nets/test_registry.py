"""Names, factories, and the messages of nets that do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pyrobnn import nets
from pyrobnn.errors import NetError


def test_a_spec_survives_json_and_builds_the_same_shapes() -> None:
    spec = nets.net_spec("lenet5", num_classes=5, in_channels=2, image_size=32)
    again = nets.build_spec(json.loads(json.dumps(spec)))
    shapes = {key: value.shape for key, value in again.state_dict().items()}
    built = nets.build("lenet5", num_classes=5, in_channels=2, image_size=32)
    assert shapes == {key: value.shape for key, value in built.state_dict().items()}
    assert built.fc2.out_features == 5


def test_torchvision_names_build_plain_classifiers() -> None:
    net = nets.build("resnet18", num_classes=7)
    assert net.fc.out_features == 7
    assert "mobilenet_v2" in nets.names()
    googlenet = nets.build("googlenet", num_classes=4).train()  # one tensor in training mode too
    assert googlenet(torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_built_in_vgg16_wins_and_torchvisions_is_reachable() -> None:
    assert isinstance(nets.build("vgg16"), nets.VGG16)
    spec = nets.net_spec("torchvision.models:squeezenet1_1", num_classes=3)
    assert spec["kwargs"] == {"num_classes": 3}
    assert nets.build_spec(spec).num_classes == 3


def test_near_names_are_offered() -> None:
    with pytest.raises(NetError, match="unknown net 'resnet2O'.*resnet20"):
        nets.build("resnet2O")
    with pytest.raises(NetError, match="built-in are small_cnn"):
        nets.build("qqqq")


def test_torchvision_wants_three_channels() -> None:
    with pytest.raises(NetError, match="resnet18 expects images with 3 channels, got 1"):
        nets.build("resnet18", in_channels=1)


def test_own_factory_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets_for_test.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, image_size=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(image_size ** 2, num_classes))\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(2, 3)\n"
        "def broken(num_classes): raise ValueError('no such size')\n"
        "def wrong(): return 3\n"
        "constant = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    spec = nets.net_spec("own_nets_for_test:make", num_classes=6, image_size=4)
    assert spec["kwargs"] == {"num_classes": 6, "image_size": 4}
    assert nets.build_spec(spec)[1].weight.shape == (6, 16)
    assert isinstance(nets.build("own_nets_for_test:Net"), nn.Linear)
    assert sys.path == path
    with pytest.raises(NetError, match="no such size"):
        nets.build("own_nets_for_test:broken")
    with pytest.raises(NetError, match=r"must return a torch\.nn\.Module, got int"):
        nets.build("own_nets_for_test:wrong")
    with pytest.raises(NetError, match="no function or class 'mke'.*make"):
        nets.build("own_nets_for_test:mke")
    with pytest.raises(NetError, match="no function or class 'constant'"):
        nets.build("own_nets_for_test:constant")
    with pytest.raises(NetError, match="cannot import 'not_there'"):
        nets.build("not_there:make")


def test_a_spec_that_is_none() -> None:
    with pytest.raises(NetError, match="expected a net spec"):
        nets.build_spec({"kwargs": {}})
    with pytest.raises(NetError, match="cannot be built with"):
        nets.build_spec({"model": "resnet20", "kwargs": {"depth": 3}})


def test_check_fits_names_the_layer_and_leaves_no_trace() -> None:
    net = nets.resnet20().train()
    net.bn1.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    nets.check_fits(net, torch.zeros(2, 3, 32, 32), 10)
    with pytest.raises(NetError, match=r"images of 1x32x32 do not fit the net at conv1: .*3 channels"):
        nets.check_fits(net, torch.zeros(2, 1, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training and net.layer1.training and not net.bn1.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_check_fits_names_the_linear_layer_behind_a_flatten() -> None:
    with pytest.raises(NetError, match="at fc1"):
        nets.check_fits(nets.lenet5(image_size=28), torch.zeros(2, 1, 32, 32))


def test_check_fits_counts_classes() -> None:
    with pytest.raises(NetError, match=r"shape \(2, 100\).*got \(2, 10\)"):
        nets.check_fits(nets.resnet20(), torch.zeros(2, 3, 32, 32), 100)
