"""Where bfloat16 is used, and where it would give wrong gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrobnn.errors import ConfigError
from pyrobnn.inference import precision
from pyrobnn.inference.precision import resolve_precision, wide_strides

CPU = torch.device("cpu")


class Deep(nn.Module):
    """Convolutions with strides; the side of the input decides where maps end."""

    def __init__(self) -> None:
        super().__init__()
        strided = [nn.Conv2d(3 if k == 0 else 4, 4, 3, stride=2, padding=1) for k in range(5)]
        self.body = nn.Sequential(*strided, nn.Conv2d(4, 4, 1, stride=2), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).flatten(1)


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)


def test_names() -> None:
    net = Deep()
    assert resolve_precision("fp32", CPU, net) is None
    assert resolve_precision("auto", CPU, net) is resolve_precision("bf16", CPU, net) is torch.bfloat16
    assert resolve_precision("auto", CPU, nn.Sequential(nn.Conv2d(3, 4, 3))) is None
    with pytest.raises(ConfigError, match="auto, fp32 or bf16"):
        resolve_precision("half", CPU)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "side"),
    [(k, s, p, n) for k, p in ((3, 1), (5, 2), (4, 2), (3, 0), (1, 0)) for s in (1, 2, 3, 4) for n in (1, 2, 3, 4)],
)
def test_what_is_not_found_has_right_gradients(kernel: int, stride: int, padding: int, side: int) -> None:
    """Against fp32, with the same operands rounded; square maps and maps of one column."""
    for shape in ((side, side), (8, side)):
        if min(shape) + 2 * padding < kernel:
            continue
        torch.manual_seed(0)
        layer, x = nn.Conv2d(4, 4, kernel, stride, padding, bias=False), torch.randn(2, 4, *shape).bfloat16().float()
        if wide_strides(layer, x):
            assert stride > min(shape) and padding
            continue
        layer.weight.data = layer.weight.data.bfloat16().float()
        grads = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled):
                out = layer(x)
            grads.append(torch.autograd.grad(out.float().sum(), layer.weight)[0])
        assert torch.allclose(grads[0], grads[1], rtol=0.03, atol=0.03 * grads[0].abs().max().item())


def test_a_stride_over_one_pixel_stays_in_fp32() -> None:
    net = Deep().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    # 16 pixels: 8, 4, 2, 1, and the fifth layer strides over one. A kernel of 1 has no tap to leave out.
    assert wide_strides(net, torch.randn(2, 3, 16, 16)) == ["body.4"]
    for name in ("auto", "bf16"):
        with pytest.warns(UserWarning, match="stride of 'body.4' is larger than its input map"):
            assert resolve_precision(name, CPU, net, torch.randn(2, 3, 16, 16)) is None
    assert resolve_precision("auto", CPU, net, torch.randn(2, 3, 32, 32)) is torch.bfloat16
    # Only a look: modes, statistics and hooks are as they were.
    assert all(module.training and not module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
