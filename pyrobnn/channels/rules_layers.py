"""Label rules of layers with weights: convolutions, linear layers, normalisation, channel maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pyrobnn.channels.calls import Call, tensors_in
from pyrobnn.channels.labels import varying
from pyrobnn.channels.surgery import grouped_unit, is_channel_map
from pyrobnn.channels.tracer import Tracer, rule


def _net_tensor(tracer: Tracer, tensor: Any) -> str | None:
    return tracer.names.get(id(tensor)) if isinstance(tensor, Tensor) else None


def _owner(tracer: Tracer, tensor_name: str) -> nn.Module | None:
    return tracer.modules.get(tensor_name.rpartition(".")[0])


def _attach(tracer: Tracer, tensor: Any, labels: Tensor, role: str) -> bool:
    """Say that a per-channel tensor goes with these channels; False if it is computed and has no channels."""
    if tensor is None:
        return True
    name = _net_tensor(tracer, tensor)
    if name is not None:
        tracer.attach(name, 0, labels, role)
        return True
    own = tracer.labels(tensor)
    if own is not None and own.numel() == labels.numel():
        tracer.ledger.union(own.reshape(-1), labels)
        return True
    return tracer.is_uniform(tensor)


def _attach_bias(tracer: Tracer, bias: Any, rows: Tensor) -> None:
    if not _attach(tracer, bias, rows, "out"):
        tracer.ledger.lock(rows, tracer.here("a computed bias"))


def _refuse_weight(tracer: Tracer, call: Call, weight: Tensor, positions: int) -> None:
    """A weight that is computed from others changes as a whole when they are cut."""
    if tracer.count_uses:
        tracer.fixed_macs += weight.numel() * positions
    module = tracer.modules.get(tracer.running, tracer.net)
    what = f"has a weight that is computed, not a parameter{_way_out(module)},"
    if tracer.running:
        tracer.computed.setdefault(tracer.running, tracer.here(f"{call.name} {what}"))
    tracer.refuse(call, what)


def _way_out(module: nn.Module) -> str:
    """What the user could do about a computed weight."""
    hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
    if nn.utils.parametrize.is_parametrized(module):
        return " (torch.nn.utils.parametrize.remove_parametrizations makes it one)"
    if "WeightNorm" in hooks:
        return " (torch.nn.utils.remove_weight_norm makes it one)"
    if "SpectralNorm" in hooks:
        return " (torch.nn.utils.remove_spectral_norm makes it one)"
    return " (store the finished weight in a plain layer)"


def _others(tracer: Tracer, names: list[str], inputs: tuple[int, Tensor] | None, rows: tuple[int, Tensor]) -> None:
    """Masks and other factors of a weight are cut as it is."""
    for name in names[1:]:
        if inputs is not None:
            tracer.attach(name, *inputs, "through")
        tracer.attach(name, *rows, "through")


_NEIGHBOURS = (
    "slides over channels, so that none can go alone (attention by linear layers or 1x1 convolutions, such as "
    "squeeze-and-excitation, can be cut),"
)


@rule("conv1d", "conv2d", "conv3d")
def conv(tracer: Tracer, call: Call) -> None:
    """Weighted sums over channels: fresh labels out, consumer slices in; depthwise and grouped ones pass or tie labels."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    names = tracer.weights(weight)
    axis = x.dim() - weight.dim() + 1
    if not names:
        return _refuse_weight(tracer, call, weight, call.out.numel() // call.out.shape[axis])
    labels = tracer.labels(x)
    name, positions = names[0], call.out.numel() // call.out.shape[axis]
    if labels is not None and any(along > axis for along in varying(tracer.small(labels))):
        _count(tracer, name, positions)
        return tracer.refuse(call, _NEIGHBOURS)
    inputs = tracer.vector(x, axis)
    groups = int(call.get(6, "groups", 1))
    owner = _owner(tracer, name)
    unit = grouped_unit(owner, groups, weight.shape[1])
    if unit is None:
        tracer.consume(name, 1, inputs)
        rows = tracer.produce(name, 0)
    elif unit == "group":
        per_group = _tied_group(tracer, inputs, groups)
        rows = per_group.repeat_interleave(weight.shape[0] // groups)
        tracer.attach(name, 0, rows, "through")
        if not isinstance(owner, _ConvNd) and (where := tracer.size_attribute(groups)) is not None:
            tracer.note_size(where, None, per_group)  # a layer of the user's own, which holds the number of groups
    else:
        tracer.consume(name, 1, _tied_offsets(tracer, inputs, groups))
        rows = tracer.produce(name, 0)
        _tied_offsets(tracer, rows, groups)
    _others(tracer, names, None if unit == "group" else (1, inputs[: weight.shape[1]]), (0, rows))
    _attach_bias(tracer, bias, rows)
    _finish(tracer, call, name, axis, rows, positions)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(tracer: Tracer, call: Call) -> None:
    """As a convolution, with input and output axes of the weight exchanged."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    names = tracer.weights(weight)
    axis = x.dim() - weight.dim() + 1
    if len(names) != 1:
        return _refuse_weight(tracer, call, weight, x.numel() // x.shape[axis])
    name = names[0]
    inputs = tracer.vector(x, axis)
    groups = int(call.get(6, "groups", 1))
    unit = grouped_unit(_owner(tracer, name), groups, weight.shape[0] // groups)
    if unit is None:
        tracer.consume(name, 0, inputs)
        rows = tracer.produce(name, 1)
    elif unit == "group":
        rows = _tied_group(tracer, inputs, groups).repeat_interleave(weight.shape[1])
        tracer.attach(name, 0, inputs, "through")
    else:
        _tied_offsets(tracer, inputs, groups)
        tracer.consume(name, 0, inputs)
        rows = tracer.produce(name, 1).repeat(groups)
    _attach_bias(tracer, bias, rows)
    _finish(tracer, call, name, axis, rows, x.numel() // x.shape[axis])


def _tied_group(tracer: Tracer, inputs: Tensor, groups: int) -> Tensor:
    """One label per convolution group."""
    blocks = inputs.reshape(groups, -1)
    tracer.ledger.union(blocks, blocks[:, :1])
    return blocks[:, 0]


def _tied_offsets(tracer: Tracer, labels: Tensor, groups: int) -> Tensor:
    """One label per offset inside a convolution group."""
    blocks = labels.reshape(groups, -1)
    tracer.ledger.union(blocks, blocks[:1])
    return blocks[0]


def _finish(tracer: Tracer, call: Call, weight: str, axis: int, rows: Tensor, positions: int) -> None:
    view = [1] * call.out.dim()
    view[axis] = rows.numel()
    tracer.set(call.out, rows.view(view))
    _count(tracer, weight, positions)


def _count(tracer: Tracer, weight: str, positions: int) -> None:
    """Note what a layer computes, in one of the two passes."""
    if tracer.count_uses:
        tracer.uses.append((weight, positions))


@rule("linear")
def linear(tracer: Tracer, call: Call) -> None:
    """Fresh labels for the output features, consumer slices for the input features."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    names = tracer.weights(weight)
    if not names or weight.dim() != 2:
        return _refuse_weight(tracer, call, weight, call.out.numel() // weight.shape[0])
    name = names[0]
    inputs = tracer.vector(x, -1)
    tracer.consume(name, 1, inputs)
    rows = tracer.produce(name, 0)
    _others(tracer, names, (1, inputs), (0, rows))
    _attach_bias(tracer, bias, rows)
    _finish(tracer, call, name, call.out.dim() - 1, rows, call.out.numel() // rows.numel())


@rule("batch_norm", "instance_norm")
def channel_norm(tracer: Tracer, call: Call) -> None:
    """Labels pass; gamma, beta and running statistics are members of the channels."""
    x = call.get(0, "input")
    labels = tracer.vector(x, 1)
    parts = {key: call.get(at, key) for at, key in enumerate(_NORM_ARGUMENTS) if at > 0}
    for key, tensor in parts.items():
        if not _attach(tracer, tensor, labels, "through"):
            return tracer.refuse(call, f"has a computed {key}, which")
    tracer.set(call.out, labels.view(1, -1, *[1] * (x.dim() - 2)))


_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias")


@rule("layer_norm", "rms_norm")
def layer_norm(tracer: Tracer, call: Call) -> None:
    """Refused where it normalises over channels; elsewhere labels pass."""
    x = call.get(0, "input")
    labels = tracer.labels(x)
    if labels is None:
        return tracer.set(call.out, None, tracer.why(x))
    last = len(call.get(1, "normalized_shape"))
    if any(axis >= x.dim() - last for axis in varying(tracer.small(labels))) or x.shape[-last:].numel() == 1:
        return tracer.refuse(call, "normalises over channels")
    tracer.set(call.out, labels)


@rule("group_norm")
def group_norm(tracer: Tracer, call: Call) -> None:
    """Channels that share statistics go together; the number of groups follows from what is left."""
    x, groups = call.get(0, "input"), int(call.get(1, "num_groups"))
    weight, bias = call.get(2, "weight"), call.get(3, "bias")
    name = _net_tensor(tracer, weight)
    owner = _owner(tracer, name) if name is not None else None
    if groups == 1 or not isinstance(owner, nn.GroupNorm) or owner.num_groups != groups:
        return tracer.refuse(call, "normalises over channels")
    labels = tracer.vector(x, 1)
    blocks = labels.reshape(groups, -1)
    tracer.ledger.union(blocks, blocks[:, :1])
    for tensor in (weight, bias):
        if not _attach(tracer, tensor, labels, "through"):
            return tracer.refuse(call, "has a computed bias, which")
    tracer.set(call.out, labels.view(1, -1, *[1] * (x.dim() - 2)))


@rule("local_response_norm")
def mixing_norm(tracer: Tracer, call: Call) -> None:
    """Channels share statistics, so none can go alone."""
    tracer.refuse(call, "normalises over channels")


@rule("prelu")
def prelu(tracer: Tracer, call: Call) -> None:
    """Labels pass; one slope per channel is a member, a single slope is not."""
    x, weight = call.get(0, "input"), call.get(1, "weight")
    labels = tracer.labels(x)
    if weight.numel() > 1:
        vector = tracer.vector(x, 1)
        if not _attach(tracer, weight, vector, "through"):
            return tracer.refuse(call, "has a computed weight, which")
        labels = vector.view(1, -1, *[1] * (x.dim() - 2))
    tracer.set(call.out, labels, tracer.why(x))


@rule("index_select")
def index_select(tracer: Tracer, call: Call) -> None:
    """A `ChannelMap` makes fresh labels and reads its input by slots; other selections of channels are refused."""
    x, dim, index = call.get(0, "input", call.get(0, "self")), int(call.get(1, "dim")), call.get(2, "index")
    name = _net_tensor(tracer, index)
    owner = _owner(tracer, name) if name is not None else None
    if name is not None and owner is not None and is_channel_map(owner):
        return _channel_map(tracer, call, name, owner)
    labels = tracer.labels(x)
    if labels is None:
        return tracer.set(call.out, None, tracer.why(x))
    if dim % x.dim() in varying(tracer.small(labels)) or x.shape[dim] == 1:
        return tracer.refuse(call, "picks channels by fixed numbers")
    tracer.set(call.out, labels.index_select(dim, index))


def _channel_map(tracer: Tracer, call: Call, index_name: str, module: nn.Module) -> None:
    """A channel map reads its input like a consumer and makes new channels like a producer."""
    x, index = call.args[0], call.args[2]
    weight_name = index_name.rpartition(".")[0] + ".weight" if "." in index_name else "weight"
    inputs = tracer.vector(x, 1)
    before = tracer.map_inputs.setdefault(index_name, inputs)
    tracer.ledger.union(before, inputs)
    used = torch.as_tensor(module.weight).cpu() != 0
    tracer.consumed.append(inputs[index.cpu()[used]])
    rows = tracer.produce(index_name, 0)
    tracer.attach(weight_name, 0, rows, "out")
    tracer.set(call.out, rows.view(1, -1, *[1] * (x.dim() - 2)))


@rule("multi_head_attention_forward", "scaled_dot_product_attention", "native_multi_head_attention")
def attention(tracer: Tracer, call: Call) -> None:
    """Refused: every channel reads every other."""
    tracer.refuse(call, "mixes channels (attention)")


@rule("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "dot", "bilinear")
def product(tracer: Tracer, call: Call) -> None:
    """Features times a parameter is a linear layer without bias; other products with labels are refused."""
    if call.name in ("matmul", "mm") and len(call.args) == 2 and _is_linear(tracer, call):
        return None
    if any(tracer.labels(tensor) is not None for tensor in tensors_in((call.args, call.kwargs))):
        return tracer.refuse(call, "is a matrix product, which mixes channels")
    return None


def _is_linear(tracer: Tracer, call: Call) -> bool:
    """``x @ weight`` with features last: what it reads and makes is noted. (Its multiply-accumulates are no layer's.)"""
    x, weight = call.args
    found = tracer.origins(weight)
    if tracer.labels(x) is None or len(found) != 1 or weight.dim() != 2:
        return False
    axes = [found[0].axis_along(axis, weight.shape[axis]) for axis in (0, 1)]
    if axes[0] is None or axes[1] is None:
        return False
    tracer.consume(found[0].name, axes[0], tracer.vector(x, -1))
    rows = tracer.produce(found[0].name, axes[1])
    tracer.set(call.out, rows.view([1] * (call.out.dim() - 1) + [-1]))
    return True
