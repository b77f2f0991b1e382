"""Device, precision and memory layout of a fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrobnn.errors import ConfigError
from pyrobnn.inference.measuring import faster, milliseconds
from pyrobnn.io.processes import current
from pyrobnn.nets.calling import eval_mode, has_layout, mark_layout, output_of, set_mode, takes_plain_only
from pyrobnn.nets.replica import copy_net


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


def resolve_precision(
    name: str, device: torch.device, net: nn.Module | None = None, example: Tensor | None = None
) -> torch.dtype | None:
    """The autocast dtype of the network's call, or None for fp32.

    `auto` means bfloat16 where the device multiplies it natively and the net gains from it: on a CPU, what a few
    steps of each say (:func:`~pyrobnn.inference.measuring.milliseconds`); without an example, or for nets so small
    that it is no matter, those with more than four convolutions. KL, log-densities, variances and BatchNorm
    statistics stay fp32 in every case.

    Args:
        name: `auto`, `fp32` or `bf16`.
        device: where the network is called.
        net: the network.
        example: a few of its inputs. With it a network that would get wrong gradients in bfloat16 on a
            CPU (see :func:`wide_strides`) stays in fp32, with a warning.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision must be auto, fp32 or bf16, got {name!r}")
    if name == "fp32":
        return None
    if device.type == "cuda" and name == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if name == "auto":
        if device.type != "cpu" or not all(current().each(cpu_has_bf16())):  # machines of a run can differ
            return None
        times = milliseconds(net, example) if net is not None and example is not None else None
        times = current().agreed(times)  # clocks differ
        convolutions = sum(isinstance(m, nn.modules.conv._ConvNd) for m in net.modules()) if net is not None else 99
        if (faster(times) is None) if times is not None else convolutions <= 4:
            return None
    if device.type == "cpu" and net is not None and example is not None and (wrong := wide_strides(net, example)):
        warnings.warn(
            f"the stride of {wrong[0]!r} is larger than its input map, where bfloat16 gradients are wrong on CPUs: using fp32 "
            "(larger images would be both faster and better)",
            UserWarning,
            stacklevel=2,
        )
        return None
    return torch.bfloat16


def _padded(module: nn.modules.conv._ConvNd) -> bool:
    """PyTorch takes padding by name only without strides, so "same" and "valid" need no look."""
    return not isinstance(module.padding, str) and max(module.padding) > 0


@torch.no_grad()
def wide_strides(net: nn.Module, example: Tensor) -> list[str]:
    """Convolutions that stride over more than their (padded) input map has.

    The bfloat16 weight gradient of such a layer leaves taps that only see padding unwritten (torch 2.14
    with oneDNN: 1e5 or infinity in place of 0, as memory happens to be). Seen where the stride along the last
    axis is larger than the map and the map is padded; any axis counts here.
    """
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            assert isinstance(module, nn.modules.conv._ConvNd)
            sizes = (inputs[0] if inputs else named["input"]).shape[-len(module.stride) :]
            if any(stride > size for stride, size in zip(module.stride, sizes, strict=True)):
                found.append(name)

        return hook

    handles = [
        module.register_forward_pre_hook(look(name), with_kwargs=True)
        for name, module in net.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd) and max(module.kernel_size) > 1 and _padded(module)
    ]
    if not handles:
        return []
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    try:
        with eval_mode(net):
            output_of(net, example.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def choose_layout(net: nn.Module, example: Tensor) -> None:
    """Try once whether a network gives the same outputs and gradients channels-last, and remember it in the network.

    `x.view(x.size(0), -1)` of an activation fails in that layout, and `as_strided` reads other numbers.
    """
    if has_layout(net) or example.dim() != 4:
        return
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    x = example[:2].detach().to(device)
    found = []
    scratch = copy_net(net)
    # By all of their names: `to` makes two buffers of one that has two places.
    buffers = {name: value.clone() for name, value in scratch.named_buffers(remove_duplicate=False)}
    with torch.random.fork_rng(devices=[]):
        for layout in (torch.contiguous_format, torch.channels_last):
            set_mode(scratch, False).to(memory_format=layout)
            for name, value in scratch.named_buffers(remove_duplicate=False):
                value.copy_(buffers[name])
            try:
                found.append(_pass(scratch, x.contiguous(memory_format=layout)))
            except Exception:  # the network is the user's own code; what it cannot do is said where it is tried
                break
    same = len(found) == 2 and all(
        # Numbers that are not finite are for the fit to find and to name.
        torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(a.nan_to_num(0, 0, 0).abs().max()), equal_nan=True)
        for a, b in zip(*found, strict=True)
    )
    mark_layout(net, len(found) == 1 or (len(found) == 2 and not same))


def _pass(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients of one pass, in eval mode, where nothing is random; and one pass in train mode."""
    output = output_of(net, x)
    weights = [p for p in net.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(output.square().sum(), weights, allow_unused=True) if weights else ()
    loss = output_of(set_mode(net, True), x).sum()
    if loss.requires_grad:
        loss.backward()
    return [output.detach(), *(g for g in gradients if g is not None)]


def channels_last(net: nn.Module) -> nn.Module:
    """Lay the 4-D tensors out channels-last where the network takes that, in place; values do not change."""
    if any(tensor.dim() == 5 for tensor in net.parameters()):
        return net  # for volumes: torch would try that layout on tensors of five axes too
    return net.to(memory_format=torch.contiguous_format if takes_plain_only(net) else torch.channels_last)


def weights_channels_last(guide: nn.Module, net: nn.Module) -> nn.Module:
    """Lay a guide's 4-D parameters out as the network's, in place: convolutions are slower where layouts differ."""
    for parameter in guide.parameters():
        if parameter.dim() == 4 and not takes_plain_only(net):
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return guide


def as_channels_last(x: Tensor) -> Tensor:
    """A batch in channels-last layout if it is 4-D."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
