"""Networks of other precisions are named before they fail."""

from __future__ import annotations

import pytest
import torch

import pyrobnn as pb
from pyrobnn.errors import NetError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_networks(dtype: torch.dtype) -> None:
    net = pb.nets.small_cnn().to(dtype)
    data = pb.load_data("digits")
    for call in (
        lambda: pb.channel_groups(net, data.example),
        lambda: pb.nets.check_fits(net, data.example),
        lambda: pb.compress(net, data, epochs=2, progress=False),
    ):
        with pytest.raises(NetError, match=r"parameter 'conv1.weight' is \w+, the images are float32: call net.float"):
            call()
    if dtype == torch.float64:
        pb.nets.check_precision(net, (data.example.double(),))
