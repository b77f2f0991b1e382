"""Changes a network's tensors in place, and the integer attributes that hold their sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.table import ChannelTable
from pyrobnn.errors import NetError
from pyrobnn.nets import functional
from pyrobnn.nets.channel_map import ChannelMap

_UNIT = "_cut_unit"
_SIZE = "_size_of_"


def is_channel_map(module: nn.Module | None) -> bool:
    """Whether a module is a :class:`~pyrobnn.nets.ChannelMap`."""
    return isinstance(module, ChannelMap)


def grouped_unit(module: nn.Module | None, groups: int, inputs_per_group: int) -> str | None:
    """What can be removed from a grouped convolution.

    ``"group"``: a whole convolution group with its inputs and outputs (the depthwise case: one channel);
    ``"offset"``: the same offset in every group, inputs and outputs apart. The finer one is chosen, by the sizes of
    the dense layer; a layer that was cut remembers.

    Returns:
        None for an ordinary convolution.
    """
    remembered: str | None = getattr(module, _UNIT, None)
    if remembered is not None:
        return remembered
    if groups == 1:
        return None
    return "group" if groups >= inputs_per_group else "offset"


def refresh_attributes(module: nn.Module) -> None:
    """Recompute ``in_channels``, ``groups``, ``num_features`` … of one module from its tensors."""
    if isinstance(module, _ConvNd):
        _refresh_conv(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
    elif isinstance(module, nn.GroupNorm):
        size = module.num_channels // module.num_groups
        module.num_channels = module.weight.numel()
        module.num_groups = module.num_channels // size
    elif isinstance(module, _NormBase):
        for tensor in (module.weight, module.running_mean):
            if tensor is not None:
                module.num_features = tensor.numel()
                break
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def _refresh_conv(module: _ConvNd) -> None:
    held = {**module._parameters, **module._buffers}
    weight = held.get("weight_orig")  # what is pruned by a mask has its weight made of this before every pass
    weight = module.weight if weight is None else weight
    transposed = isinstance(module, _ConvTransposeNd)
    rows, columns = weight.shape[:2]
    inputs = module.in_channels // module.groups
    unit = grouped_unit(module, module.groups, inputs)
    groups = module.groups
    if unit == "group":
        rows_per_group = (module.in_channels if transposed else module.out_channels) // groups
        groups = rows // rows_per_group
    if unit is not None and (rows, columns) != _dense_shape(module, transposed):
        setattr(module, _UNIT, unit)
    module.groups = groups
    if transposed:
        module.in_channels, module.out_channels = rows, columns * groups
    else:
        module.in_channels, module.out_channels = columns * groups, rows


def _dense_shape(module: _ConvNd, transposed: bool) -> tuple[int, int]:
    if transposed:
        return module.in_channels, module.out_channels // module.groups
    return module.out_channels, module.in_channels // module.groups


class Sites:
    """Every place where a network holds its tensors, by name and including aliases."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.places: dict[int, list[tuple[nn.Module, str]]] = {}
        self.ids: dict[str, int] = {}
        for path, module in net.named_modules():
            for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    self.places.setdefault(id(tensor), []).append((module, leaf))
                    self.ids[f"{path}.{leaf}" if path else leaf] = id(tensor)

    def get(self, name: str) -> Tensor:
        """The tensor of that name."""
        if name not in self.ids:
            raise NetError(f"expected a net with a tensor {name!r}: the channel groups belong to another net")
        module, leaf = self.places[self.ids[name]][0]
        parameter = module._parameters.get(leaf)
        tensor = parameter if parameter is not None else module._buffers[leaf]
        assert tensor is not None
        return tensor

    def names(self, name: str) -> tuple[str, ...]:
        """All names of a tensor, this and those of its other places."""
        return tuple(other for other, key in self.ids.items() if key == self.ids[name])

    def modules(self, names: Iterable[str]) -> list[nn.Module]:
        """The modules that hold these tensors, each once."""
        found = {id(module): module for name in names for module, _ in self.places[self.ids[name]]}
        return list(found.values())

    def put(self, name: str, value: Tensor) -> None:
        """Put a new value in all places of a tensor; parameters stay parameters, frozen ones frozen."""
        holder: nn.Parameter | None = None
        for module, leaf in self.places[self.ids[name]]:
            old = module._parameters.get(leaf)
            if old is not None:
                if holder is None:
                    holder = nn.Parameter(value, requires_grad=old.requires_grad)
                module._parameters[leaf] = holder
            else:
                module._buffers[leaf] = value

    def persist(self, names: Iterable[str]) -> None:
        """Make buffers part of the state dict, as these values cannot be had from the network's factory."""
        for name in names:
            for module, leaf in self.places[self.ids[name]]:
                module._non_persistent_buffers_set.discard(leaf)

    def hold(self, name: str) -> None:
        """Make a parameter a buffer, in all its places."""
        value = self.get(name).detach().clone()
        for module, leaf in self.places[self.ids[name]]:
            functional.hold(module, leaf, value)

    def release(self, name: str, value: Tensor, requires_grad: bool) -> None:
        """Make a buffer a parameter of this value, in all its places."""
        parameter = nn.Parameter(value, requires_grad=requires_grad)
        for module, leaf in self.places[self.ids[name]]:
            functional.release(module, leaf, parameter)


def check_net(table: ChannelTable, sites: Sites) -> None:
    """Raise NetError unless the table's tensors exist in the net with the table's shapes."""
    for name in dict.fromkeys([*table.cut_axes, *table.read_axes]):
        if name in table.facts.sizes:
            continue
        shape = tuple(sites.get(name).shape)
        if shape != table.facts.shapes[name]:
            raise NetError(
                f"expected {name!r} of shape {table.facts.shapes[name]} as in the channel groups, got {shape}: "
                "use the groups of this net (table.after(plan) for a compact one)"
            )


@torch.no_grad()
def mask_(sites: Sites, table: ChannelTable, keep: Tensor) -> list[str]:
    """Zero what consumers read of removed units, in place of the old tensors.

    Returns:
        Names of the tensors that changed.
    """
    changed = []
    for name, axes in table.read_axes.items():
        if all(bool(keep[units].all()) for units in axes.values()):
            continue
        tensor = sites.get(name).detach().clone()
        for axis, units in axes.items():
            tensor.index_fill_(axis, (~keep[units]).nonzero().squeeze(1).to(tensor.device), 0)
        sites.put(name, tensor)
        changed.append(name)
    return changed


@torch.no_grad()
def cut_(sites: Sites, table: ChannelTable, keep: Tensor) -> list[str]:
    """Remove units: smaller tensors, and attributes that fit them.

    Returns:
        Names of the tensors that changed.
    """
    changed = touched(table, keep)
    for name in changed:
        if name in table.facts.sizes:
            path, attribute, position = table.facts.sizes[name]
            set_size(sites.net.get_submodule(path), attribute, position, int(keep[table.cut_axes[name][0]].sum()))
            continue
        old = sites.get(name).detach()
        new = table.cut(name, old, keep)
        if old.dim() == 4 and not old.is_contiguous() and old.is_contiguous(memory_format=torch.channels_last):
            new = new.contiguous(memory_format=torch.channels_last)  # the layout is worth a factor of two
        sites.put(name, new.clone())
    changed = [name for name in changed if name not in table.facts.sizes]
    sites.persist(changed)
    for module in sites.modules(changed):
        refresh_attributes(module)
    return changed


@torch.no_grad()
def fill_cut(small: nn.Module, net: nn.Module, table: ChannelTable, plan: PruningPlan) -> nn.Module:
    """Copy a network's tensors, cut to a plan, into a network of its kind that was cut to that plan already.

    Args:
        small: changed in place, and returned; of another network of the same classes.
        net: where the values come from.
        table: of `net`.
        plan: what is kept.
    """
    keep = table.keep_vector(plan)
    changed, source, target = set(touched(table, keep)), Sites(net), Sites(small)
    first_names = {key: name for name, key in reversed(target.ids.items())}  # as the table has them
    for name in first_names.values():
        if not name.rpartition(".")[2].startswith(_SIZE):  # which the cut has set
            value = source.get(name).detach()
            target.get(name).detach().copy_(table.cut(name, value, keep) if name in changed else value)
    return small


def set_size(module: nn.Module, attribute: str, position: int | None, value: int) -> None:
    """Change a number that counts channels, and keep it in a buffer too, from which :func:`restore_sizes` reads it."""
    old = getattr(module, attribute)
    new = value if position is None else type(old)([*old[:position], value, *old[position + 1 :]])
    setattr(module, attribute, new)
    module.register_buffer(_SIZE + attribute, torch.as_tensor(new))


def restore_sizes(net: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Set the attributes that the buffers of a compact network's state dict tell of."""
    for name, value in state_dict.items():
        path, _, leaf = name.rpartition(".")
        attribute = leaf.removeprefix(_SIZE)
        if leaf.startswith(_SIZE) and isinstance(value, Tensor):
            module = dict(net.named_modules()).get(path)
            old: Any = getattr(module, attribute, None)
            if module is None or type(old) not in (int, list, tuple) or value.dim() != (0 if type(old) is int else 1):
                raise NetError(f"the saved tensors do not fit this network: it has no {path}.{attribute}")
            setattr(module, attribute, int(value) if type(old) is int else type(old)(value.tolist()))
            module.register_buffer(leaf, value.clone())


def holders(sites: Sites, table: ChannelTable, names: Iterable[str]) -> list[nn.Module]:
    """The modules in which these tensors and sizes are."""
    names = list(names)
    paths = [table.facts.sizes[name][0] for name in names if name in table.facts.sizes]
    found = [*sites.modules(n for n in names if n not in table.facts.sizes), *map(sites.net.get_submodule, paths)]
    return list({id(module): module for module in found}.values())


def touched(table: ChannelTable, keep: Tensor) -> list[str]:
    """Names of the tensors that a cut changes."""
    names = [
        name
        for name in dict.fromkeys([*table.cut_axes, *table.read_axes])
        if any(
            not bool(keep[units].all())
            for axes in (table.cut_axes.get(name, {}), table.read_axes.get(name, {}))
            for units in axes.values()
        )
    ]
    for name, source in table.facts.maps.items():
        if name not in names and any(not bool(_kept(table, keep, pair).all()) for pair in source.units):
            names.append(name)
    return names


def _kept(table: ChannelTable, keep: Tensor, pair: tuple[str, Tensor]) -> Tensor:
    name, units = pair
    return keep[table.offsets[name] + units[units >= 0]]


class Undo:
    """Remembers modules as they are (tensors, plain attributes, modes), to take surgery back."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._saved: list[tuple[nn.Module, dict[str, Any], dict[str, Any], set[str], dict[str, Any]]] = [
            (
                m,
                dict(m._parameters),
                dict(m._buffers),
                set(m._non_persistent_buffers_set),
                {k: v for k, v in vars(m).items() if isinstance(v, int | str | tuple | list | Tensor)},
            )
            for m in modules
        ]

    def __call__(self) -> None:
        for module, parameters, buffers, unsaved, attributes in self._saved:
            for held, before in ((module._parameters, parameters), (module._buffers, buffers)):
                held.clear()
                held.update(before)
            module._non_persistent_buffers_set.clear()
            module._non_persistent_buffers_set.update(unsaved)
            vars(module).update(attributes)
            if _UNIT not in attributes:
                vars(module).pop(_UNIT, None)
