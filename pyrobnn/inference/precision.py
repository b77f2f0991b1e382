"""Where to compute and in which precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrobnn.errors import ConfigError


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: an unknown name, or a device this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device must be auto, cpu, cuda or mps, got {name!r}")
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError(f"device {name!r} is not available on this machine; use --device auto")
    return torch.device(name)


def cpu_has_bf16() -> bool:
    """True if the processor multiplies bfloat16 natively (elsewhere it would be emulated and slow)."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def resolve_precision(name: str, device: torch.device, net: nn.Module | None = None) -> torch.dtype | None:
    """The autocast dtype of the network's call, or None for fp32.

    `auto` means bfloat16 where the device multiplies it natively and the net is large enough to
    gain from it (a LeNet spends more on the casts than it saves). KL, log-densities, variances and
    BatchNorm statistics stay fp32 in every case.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision must be auto, fp32 or bf16, got {name!r}")
    if name == "fp32":
        return None
    if name == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    convolutions = sum(isinstance(m, nn.modules.conv._ConvNd) for m in net.modules()) if net is not None else 99
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() and convolutions > 4 else None


def channels_last(net: nn.Module) -> nn.Module:
    """Lay the 4-D tensors out channels-last, in place; values do not change."""
    return net.to(memory_format=torch.channels_last)


def as_channels_last(x: Tensor) -> Tensor:
    """A batch in channels-last layout if it is 4-D."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
