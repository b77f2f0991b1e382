"""Label rules of operations that move numbers: the same operation is applied to the labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrobnn.channels.calls import Call
from pyrobnn.channels.labels import varying
from pyrobnn.channels.rules_math import unite
from pyrobnn.channels.tracer import Tracer, no_labels, rule, source_of


@rule("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel")
def reshape(tracer: Tracer, call: Call) -> None:
    """The label tensor is reshaped as the numbers are."""
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    if call.out.numel() != source.numel():
        return tracer.refuse(call, "reads the numbers as another type, which")
    moved = labels.reshape(call.out.shape)
    small = tracer.small(moved)
    axes = varying(small)
    if len(axes) > 1:
        before = varying(tracer.small(labels))
        if len(before) > 1:
            return tracer.refuse(call, "spreads channels over several axes, which")
        tie_split(tracer, call, small, axes)
        small = tracer.small(moved)
    tracer.set(call.out, small.expand(call.out.shape))


def tie_split(tracer: Tracer, call: Call, small: Tensor, axes: tuple[int, ...]) -> None:
    """Channels that are spread over a grid stay a grid if one of its axes gets shorter.

    Of a view c -> (g, c/g) every row loses the same columns; of c -> (c', h, w), which makes maps of features, whole
    maps go. Where the call leaves an axis open with -1 it is that one. What the forward pass really computes from
    its input's size shows when the group is tried. Sizes that an `nn.Unflatten` holds follow the cut.
    """
    sizes = call.args[-1] if call.args and isinstance(call.args[-1], list | tuple) else call.args[1:]
    source = source_of(call)
    first = int(call.get(1, "dim")) % source.dim() if call.name == "unflatten" else 0
    given = {first + at: size for at, size in enumerate(sizes) if isinstance(size, int)}
    if call.name != "unflatten" and len(sizes) != call.out.dim():
        given = {}
    stays = next((axis for axis in axes if given.get(axis) == -1), axes[1] if len(axes) == 2 else axes[0])
    for axis in axes:
        if axis != stays:
            tracer.ledger.union(small, small.narrow(axis, 0, 1))
    where = tracer.size_attribute(sizes) if call.name == "unflatten" and given.get(stays) != -1 else None
    if where is not None:
        line = small
        for axis in axes:
            line = line if axis == stays else line.narrow(axis, 0, 1)
        tracer.note_size(where, stays - first, line.reshape(-1))


@rule("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "adjoint")
def rearrange(tracer: Tracer, call: Call) -> None:
    """The call itself, made on the labels."""
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    if call.name in ("T", "mT"):
        moved = labels.mT if call.name == "mT" else labels.permute(*reversed(range(labels.dim())))
    else:
        moved = call.function(labels, *call.args[1:], **call.kwargs)
    tracer.set(call.out, moved)


@rule("expand", "expand_as", "broadcast_to")
def expand(tracer: Tracer, call: Call) -> None:
    """Copies of a channel are that channel."""
    labels = tracer.labels(source_of(call))
    if labels is None:
        return no_labels(tracer, call)
    tracer.set(call.out, labels.expand(call.out.shape))


@rule("repeat", "tile", "repeat_interleave", "flip", "fliplr", "flipud")
def repeat(tracer: Tracer, call: Call) -> None:
    """Copies of a channel, and mirrored axes, keep their labels; the call is made on them."""
    labels = tracer.labels(source_of(call))
    if labels is None:
        return no_labels(tracer, call)
    tracer.set(call.out, call.function(labels, *call.args[1:], **call.kwargs))


@rule("roll")
def roll(tracer: Tracer, call: Call) -> None:
    """Other axes may roll; channels that roll by a fixed number are refused."""
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    dims = call.get(2, "dims")
    moved = [dims] if isinstance(dims, int) else list(dims or range(source.dim()))
    if any(d % source.dim() in varying(tracer.small(labels)) for d in moved):
        return tracer.refuse(call, "shifts channels by a fixed number")
    tracer.set(call.out, labels)


@rule("chunk", "split", "unsafe_chunk", "unsafe_split", "tensor_split", "split_with_sizes", "unbind")
def split(tracer: Tracer, call: Call) -> None:
    """Equal parts lose the same offsets; parts whose sizes a module holds in an attribute are cut each by itself.

    Other unequal parts, and single channels, are refused.
    """
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    position, default = (1, 0) if call.name == "unbind" else (2, 0)
    dim = int(call.get(position, "dim", default)) % source.dim()
    parts: list[Tensor] = list(call.out)
    small = tracer.small(labels)
    if dim in varying(small):
        sizes = {part.shape[dim] if part.dim() == source.dim() else 0 for part in parts}
        if call.name == "unbind" or len(varying(small)) > 1:
            return tracer.refuse(call, "cuts the channels into fixed parts")
        line = small.reshape(-1)
        wanted = call.get(1, "split_size_or_sections", call.kwargs.get("split_size", call.kwargs.get("split_sizes")))
        where = tracer.size_attribute(wanted) if call.name.endswith(("split", "sizes")) and wanted is not None else None
        if where is not None and not isinstance(wanted, int):
            start = 0
            for at, part in enumerate(parts):
                tracer.note_size(where, at, line[start : start + part.shape[dim]])
                start += part.shape[dim]
        elif (held := _one_by_one(tracer, wanted)) is not None:
            start = 0
            for one, part in zip(held, parts, strict=True):
                tracer.note_size(one, None, line[start : start + part.shape[dim]])
                start += part.shape[dim]
        elif len(sizes) > 1:
            return tracer.refuse(
                call,
                "cuts the channels into unequal parts (keep the list of sizes in an attribute of the module), which",
            )
        else:  # parts of equal size stay equal if all lose the same offset
            size = sizes.pop()
            tracer.ledger.union(line, line[:size].repeat(len(parts)))
            if where is not None:
                tracer.note_size(where, None, line[:size])
            elif isinstance(wanted, int) and (whole := tracer.size_attribute(line.numel())) is not None:
                tracer.note_size(whole, None, line)  # as in split(x, self.channels // 2, dim=1)
    start = 0
    for part in parts:
        if part.dim() != source.dim():
            tracer.set(part, labels.select(dim, start))
            start += 1
        else:
            tracer.set(part, labels.narrow(dim, start, part.shape[dim]))
            start += part.shape[dim]


def _one_by_one(tracer: Tracer, wanted: Any) -> list[tuple[str, str]] | None:
    """Unequal sizes that are each an attribute of their own, as in ``split(x, [self.first, self.rest], dim=1)``."""
    if not isinstance(wanted, list | tuple) or len(set(wanted)) != len(wanted):
        return None
    held = [tracer.size_attribute(size) for size in wanted]
    return [one for one in held if one is not None] if None not in held else None


@rule("getitem", "narrow", "select")
def getitem(tracer: Tracer, call: Call) -> None:
    """Slices of other axes, and of channels one of several equal parts, as `split` would make it.

    Refused: index tensors, single channels, slices whose bounds a cut would move.
    """
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    small = tracer.small(labels)
    if call.name == "getitem":
        index = _normal_index(call.args[1], source.dim())
    else:
        dim = int(call.get(1, "dim")) % source.dim()
        start = call.get(2, "start" if call.name == "narrow" else "index")
        picked: Any = slice(start, start + call.get(3, "length")) if call.name == "narrow" else start
        index = [slice(None)] * dim + [picked] + [slice(None)] * (source.dim() - dim - 1)
    if index is None:
        return tracer.refuse(call, "picks numbers by an index tensor")
    axes = [item for item in index if item is not None]
    for axis in varying(small):
        item, size = axes[axis], source.shape[axis]
        if isinstance(item, int):
            return tracer.refuse(call, "picks a channel by a fixed number")
        start, stop, step = item.indices(size)
        if (start, stop, step) == (0, size, 1):
            continue
        length = stop - start
        # One of several equal parts, as in x[:, : c // 2]: all parts must lose the same offset.
        if step != 1 or length <= 0 or size % length or start % length or len(varying(small)) > 1:
            return tracer.refuse(call, "picks channels by fixed numbers")
        line = small.reshape(-1)
        tracer.ledger.union(line, line[:length].repeat(size // length))
    tracer.set(call.out, labels[tuple(index)])


def _normal_index(index: Any, dims: int) -> list[Any] | None:
    """One entry per axis (slices and ints) and None for new axes; None if tensors or lists are in it."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not (item is None or item is Ellipsis or isinstance(item, int | slice)) for item in items):
        return None
    if any(isinstance(item, bool) for item in items):
        return None
    used = sum(item is not None and item is not Ellipsis for item in items)
    fill = [slice(None)] * (dims - used)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        return items[:at] + fill + items[at + 1 :]
    return items + fill


@rule("cat", "concat", "concatenate", "stack", "hstack", "column_stack", "vstack", "row_stack", "dstack")
def concatenate(tracer: Tracer, call: Call) -> None:
    """Along the channels the labels follow one another; along another axis the same channels meet.

    A part without labels has a fixed size: its place is locked.
    """
    parts: list[Tensor] = list(call.get(0, "tensors"))
    if all(tracer.labels(part) is None for part in parts):
        return no_labels(tracer, call)
    dim = _STACKS[call.name] if call.name in _STACKS else int(call.get(1, "dim", 0))
    if call.name in _STACKS and parts[0].dim() <= dim:
        return tracer.refuse(call, "of so few axes makes a new one, which")
    if call.name == "stack":
        shape = parts[0].shape
        united = unite(tracer, parts, shape, "stack")
        return tracer.set(call.out, None if united is None else united.expand(shape).unsqueeze(dim % (len(shape) + 1)))
    parts = [part for part in parts if part.numel()]
    dim %= parts[0].dim()
    small = [None if (labels := tracer.labels(part)) is None else tracer.small(labels) for part in parts]
    along = any(one is not None and dim in varying(one) for one in small)
    if not along and all(one is None or varying(one) for one in small):
        # Joined along another axis (space, tokens): the same channels meet.
        shape = torch.Size([1 if axis == dim else size for axis, size in enumerate(parts[0].shape)])
        joined = unite(tracer, parts, shape, "cat")
        return tracer.set(call.out, None if joined is None else joined.narrow(dim, 0, 1).expand(call.out.shape))
    columns = []
    for part, one in zip(parts, small, strict=True):
        if one is None:
            fixed = tracer.ledger.fresh(part.shape[dim])
            tracer.ledger.lock(fixed, tracer.here(f"cat with a tensor of fixed size ({tracer.why(part)})"))
            columns.append(fixed)
        elif set(varying(one)) <= {dim}:
            columns.append(one.reshape(-1).expand(part.shape[dim]))
        else:
            return tracer.refuse(call, "joins tensors whose channels are on different axes, which")
    view = [1] * parts[0].dim()
    view[dim] = -1
    tracer.set(call.out, torch.cat(columns).view(view))


_STACKS = {"hstack": 1, "column_stack": 1, "vstack": 0, "row_stack": 0, "dstack": 2}


@rule("pad", "constant_pad_nd")
def pad(tracer: Tracer, call: Call) -> None:
    """Channels of constants come to channels: locked, as their number stands in the call."""
    source = source_of(call)
    labels = tracer.labels(source)
    if labels is None:
        return no_labels(tracer, call)
    small = tracer.small(labels)
    amounts = list(call.get(1, "pad"))
    mode = call.get(2, "mode", "constant")
    for step, axis in enumerate(range(source.dim() - 1, source.dim() - 1 - len(amounts) // 2, -1)):
        before, behind = amounts[2 * step : 2 * step + 2]
        if (before, behind) == (0, 0) or axis not in varying(small):
            continue
        if mode != "constant" or before < 0 or behind < 0 or len(varying(small)) > 1:
            return tracer.refuse(call, "pads channels from other channels, which")
        fixed = tracer.ledger.fresh(before + behind)
        tracer.ledger.lock(fixed, tracer.here(f"{call.name} with a fixed number of constant channels"))
        line = torch.cat([fixed[:before], small.reshape(-1), fixed[before:]])
        small = line.view([-1 if other == axis else 1 for other in range(source.dim())])
    tracer.set(call.out, small.expand(call.out.shape))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(tracer: Tracer, call: Call) -> None:
    """Groups must lose the same offsets, so that they stay of one size; then the grid is transposed."""
    source = source_of(call)
    groups = int(call.get(1, "groups"))
    line = tracer.vector(source, 1)
    grid = line.reshape(groups, -1)
    tracer.ledger.union(grid, grid[:1])
    tracer.set(call.out, grid.t().reshape(1, -1, *[1] * (source.dim() - 2)))


@rule("pixel_shuffle")
def pixel_shuffle(tracer: Tracer, call: Call) -> None:
    """The r * r channels that become one go together."""
    line = tracer.vector(source_of(call), -3)
    blocks = line.reshape(call.out.shape[-3], -1)
    tracer.ledger.union(blocks, blocks[:, :1])
    tracer.set(call.out, blocks[:, 0].reshape(-1, 1, 1))


@rule("pixel_unshuffle")
def pixel_unshuffle(tracer: Tracer, call: Call) -> None:
    """Each channel becomes r * r with its label."""
    line = tracer.vector(source_of(call), -3)
    tracer.set(call.out, line.repeat_interleave(call.out.shape[-3] // line.numel()).reshape(-1, 1, 1))
