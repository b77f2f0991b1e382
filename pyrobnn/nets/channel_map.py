"""A channel map that surgery can cut on both sides."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelMap(nn.Module):
    """Moves channel ``i`` of the input to channel ``offset + i`` of the output; the other outputs are zero.

    The parameter-free shortcut of He et al. 2015 ("Deep Residual Learning", option A) pads the channels of
    the identity with zeros. Written as ``F.pad`` the amount is a Python constant, which no tensor surgery can
    change. Here the map is two buffers, one entry per output channel: ``index`` says which input channel it
    reads and ``weight`` is 1 for a copy and 0 for a padded channel (whose index is 0). Cutting output
    channels slices both buffers; cutting input channels renumbers ``index`` and sets ``weight`` to 0 where
    the source is gone.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out, at least ``offset + in_channels``.
        offset: Zero channels in front of the copied ones.

    Shapes: ``[B, in_channels, ...] -> [B, out_channels, ...]``.

    >>> ChannelMap(2, 4, offset=1)(torch.ones(1, 2, 1, 1)).flatten().tolist()
    [0.0, 1.0, 1.0, 0.0]
    """

    index: Tensor
    weight: Tensor

    def __init__(self, in_channels: int, out_channels: int, offset: int = 0) -> None:
        super().__init__()
        if in_channels < 1 or offset < 0 or out_channels < offset + in_channels:
            raise ValueError(
                f"expected out_channels >= offset + in_channels, got {out_channels}, {offset}, {in_channels}"
            )
        target = torch.arange(out_channels) - offset
        copied = (target >= 0) & (target < in_channels)
        self.register_buffer("index", torch.where(copied, target, 0))
        self.register_buffer("weight", copied.to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in, ...]` to `[B, out, ...]`."""
        return x.index_select(1, self.index) * self.weight.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))

    def extra_repr(self) -> str:
        return f"out_channels={self.index.numel()}, copied={int(self.weight.count_nonzero())}"
