"""Label rules of layers with weights: convolutions, linear layers, normalisation, channel maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels.labels import varying
from pyrobnn.channels.surgery import grouped_unit, is_channel_map
from pyrobnn.channels.tracer import Call, Tracer, rule, tensors_in


def _net_tensor(tracer: Tracer, tensor: Any) -> str | None:
    return tracer.names.get(id(tensor)) if isinstance(tensor, Tensor) else None


def _owner(tracer: Tracer, tensor_name: str) -> nn.Module | None:
    return tracer.modules.get(tensor_name.rpartition(".")[0])


def _attach_bias(tracer: Tracer, bias: Any, rows: Tensor) -> None:
    if bias is None:
        return
    name = _net_tensor(tracer, bias)
    if name is None:
        tracer.ledger.lock(rows, tracer.here("a computed bias"))
    else:
        tracer.attach(name, 0, rows, "out")


def _refuse_weight(tracer: Tracer, call: Call) -> None:
    tracer.refuse(call, "has a weight that is computed, not a parameter,")


@rule("conv1d", "conv2d", "conv3d")
def conv(tracer: Tracer, call: Call) -> None:
    """Weighted sums over channels: fresh labels out, consumer slices in; depthwise and grouped ones pass or tie labels."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    name = _net_tensor(tracer, weight)
    if name is None:
        return _refuse_weight(tracer, call)
    axis = x.dim() - weight.dim() + 1
    inputs = tracer.vector(x, axis)
    groups = int(call.get(6, "groups", 1))
    unit = grouped_unit(_owner(tracer, name), groups, weight.shape[1])
    if unit is None:
        tracer.consume(name, 1, inputs)
        rows = tracer.produce(name, 0)
    elif unit == "group":
        rows = _tied_group(tracer, inputs, groups).repeat_interleave(weight.shape[0] // groups)
        tracer.attach(name, 0, rows, "through")
    else:
        tracer.consume(name, 1, _tied_offsets(tracer, inputs, groups))
        rows = tracer.produce(name, 0)
        _tied_offsets(tracer, rows, groups)
    _attach_bias(tracer, bias, rows)
    _finish(tracer, call, name, axis, rows, call.out.numel() // call.out.shape[axis])


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(tracer: Tracer, call: Call) -> None:
    """As a convolution, with input and output axes of the weight exchanged."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    name = _net_tensor(tracer, weight)
    if name is None:
        return _refuse_weight(tracer, call)
    axis = x.dim() - weight.dim() + 1
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
    if tracer.count_uses:
        tracer.uses.append((weight, positions))


@rule("linear")
def linear(tracer: Tracer, call: Call) -> None:
    """Fresh labels for the output features, consumer slices for the input features."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    name = _net_tensor(tracer, weight)
    if name is None or weight.dim() != 2:
        return _refuse_weight(tracer, call)
    tracer.consume(name, 1, tracer.vector(x, -1))
    rows = tracer.produce(name, 0)
    _attach_bias(tracer, bias, rows)
    _finish(tracer, call, name, call.out.dim() - 1, rows, call.out.numel() // rows.numel())


@rule("batch_norm", "instance_norm")
def channel_norm(tracer: Tracer, call: Call) -> None:
    """Labels pass; gamma, beta and running statistics are members of the channels."""
    x = call.get(0, "input")
    labels = tracer.vector(x, 1)
    parts = {key: call.get(at, key) for at, key in enumerate(_NORM_ARGUMENTS) if at > 0}
    for key, tensor in parts.items():
        if tensor is None:
            continue
        name = _net_tensor(tracer, tensor)
        if name is None:
            return tracer.refuse(call, f"has a computed {key}, which")
        tracer.attach(name, 0, labels, "through")
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


@rule("group_norm", "local_response_norm")
def mixing_norm(tracer: Tracer, call: Call) -> None:
    """Channels share statistics, so none can go alone."""
    tracer.refuse(call, "normalises over channels")


@rule("prelu")
def prelu(tracer: Tracer, call: Call) -> None:
    """Labels pass; one slope per channel is a member, a single slope is not."""
    x, weight = call.get(0, "input"), call.get(1, "weight")
    labels = tracer.labels(x)
    if weight.numel() > 1:
        name = _net_tensor(tracer, weight)
        if name is None:
            return tracer.refuse(call, "has a computed weight, which")
        vector = tracer.vector(x, 1)
        tracer.attach(name, 0, vector, "through")
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
    """Refused where a factor carries labels: which sums it forms is not analysed."""
    if any(tracer.labels(tensor) is not None for tensor in tensors_in((call.args, call.kwargs))):
        tracer.refuse(call, "is a matrix product, which mixes channels")
