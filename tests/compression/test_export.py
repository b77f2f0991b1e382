"""Exports: the same function in a fresh interpreter that has no pyrobnn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.compression.export import OPSET, export

onnx = pytest.importorskip("onnx", reason="needs pip install 'pyrobnn[export]'")
CHECK = """
import sys
sys.modules["pyrobnn"] = None  # cannot be imported
import numpy, torch
saved = torch.load(sys.argv[1], weights_only=True)
x, expected = saved["x"], saved["y"]
for path in sys.argv[2:]:
    for part in (slice(0, 64), slice(5, 6), slice(3, 10)):
        if path.endswith(".onnx"):
            import onnxruntime
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x[part].numpy()})[0])
        else:
            with torch.no_grad():
                got = torch.export.load(path).module()(x[part])
        error = float((got - expected[part]).abs().max())
        assert error <= 1e-4, (path, part, error)
assert not any(name.startswith("pyrobnn.") for name in sys.modules)
"""


def check_elsewhere(folder: Path, x: Tensor, expected: Tensor, *paths: Path) -> None:
    torch.save({"x": x, "y": expected}, folder / "expected.pt")
    command = [sys.executable, "-W", "ignore", "-c", CHECK, str(folder / "expected.pt"), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]


class UNet(nn.Module):
    """Two levels, with a skip and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(torch.cat([skip, self.up(self.deep(skip))], 1))


def compacted(net: nn.Module, x: Tensor) -> nn.Module:
    """Every other unit gone, and statistics that are not those of initialisation."""
    with torch.no_grad():
        net.train()(x[:16])
    table = pb.channel_groups(net.eval(), x[:2], try_cut=False)
    plan = pb.PruningPlan({g.name: list(range(0, g.channels, 2)) for g in table}, table.widths())
    return pb.compact(net, plan, None, table).eval()


NETS = {
    "lenet5": (lambda: pb.nets.build("lenet5", in_channels=1, image_size=28), (1, 28, 28)),
    "unet": (UNet, (3, 32, 32)),
    "resnet20": (pb.nets.resnet20, (3, 32, 32)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (3, 64, 64)),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), (3, 64, 64)),
}
SLOW = ("unet", "resnet20", "resnet18", "mobilenet_v3")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETS])
def test_the_same_answers_without_pyrobnn(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = NETS[name]
    x = torch.randn(64, *shape)
    small = compacted(make(), x)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    made = [export(small, x[:8], tmp_path / f"net{suffix}") for suffix in (".onnx", ".pt2")]
    with torch.no_grad():
        check_elsewhere(tmp_path, x, small(x), *(result.path for result in made))
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())
    graph = onnx.load(made[0].path)
    assert graph.opset_import[0].version == OPSET == made[0].opset
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
    for result in made:
        line = str(result)
        assert result.bytes == result.path.stat().st_size and f"{result.bytes:,} bytes" in line and "ms" in line


@pytest.mark.slow
def test_normalisation_inside(tmp_path: Path) -> None:
    net, pixels = pb.nets.build("lenet5", in_channels=1, image_size=28).eval(), torch.rand(64, 1, 28, 28)
    images = (pixels - 0.3) / 0.4
    made = [export(net, images[:4], tmp_path / f"n{s}", normalise=((0.3,), (0.4,))) for s in (".onnx", ".pt2")]
    with torch.no_grad():
        check_elsewhere(tmp_path, pixels, net(images), *(result.path for result in made))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(4, 1, 8, 8)
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    for format in ("onnx", "torch"):
        with pytest.raises(pb.NetError, match="Branches cannot be exported"):
            export(Branches(), x, tmp_path / "b", format=format)
    with pytest.raises(pb.ConfigError, match="must be onnx or torch"):
        export(net, x, tmp_path / "b.tflite")
    with pytest.raises(pb.ConfigError, match="at least one"):
        export(net, x[:0], tmp_path / "b.onnx")
    with pytest.raises(pb.NetError, match=r"call net\.float"):
        export(net.double(), x, tmp_path / "b.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(pb.ConfigError, match=r"needs onnxruntime: pip install 'pyrobnn\[export\]'"):
        export(net.float(), x, tmp_path / "b.onnx")
    monkeypatch.setattr("pyrobnn.compression.export.TOLERANCE", -1.0)
    with pytest.raises(pb.NetError, match="nothing was written"):
        export(net.float(), x, tmp_path / "b.pt2")
    assert not list(tmp_path.iterdir())


def test_the_export_of_a_result(tmp_path: Path) -> None:
    result = pb.compress("small_cnn", "digits", "l1", target_macs=0.5, epochs=3, progress=False)
    made = result.export(tmp_path / "small.pt2", normalise=True)
    pixels = pb.load_data("digits").test.images[:9].float() / 255
    images = (pixels - torch.tensor(result._mean)) / torch.tensor(result._std)
    with torch.no_grad():
        got = torch.export.load(made.path).module()(pixels)
        torch.testing.assert_close(got, result.compact(images), atol=1e-4, rtol=0)
