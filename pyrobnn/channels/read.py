"""Reads the channel table from a network by running it once with labels."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.channels import rules_layers, rules_math, rules_shape
from pyrobnn.channels.calls import tensors_in
from pyrobnn.channels.parts import ChannelGroup, MapInput, Member, NetFacts, Role
from pyrobnn.channels.table import ChannelTable
from pyrobnn.channels.tracer import Tracer
from pyrobnn.channels.trial import first_line, try_groups
from pyrobnn.errors import ConfigError, NetError
from pyrobnn.nets.calling import set_mode
from pyrobnn.nets.checks import check_precision
from pyrobnn.nets.replica import copy_net, unwrap

Example = Tensor | tuple[Any, ...]
# Importing these modules fills the registry of rules.
_RULE_MODULES = (rules_layers, rules_math, rules_shape)


def channel_groups(net: nn.Module, example: Example, protect: Sequence[str] = (), try_cut: bool = True) -> ChannelTable:
    """Read which channels of a network can be removed together, and what cannot be cut and why.

    Labels travel through the network's own operations (see :mod:`pyrobnn.channels.tracer`), in eval and in train
    mode; then every group is cut alone on a small input, and is refused unless the compact network equals the
    masked one. Works on a copy: mode, gradients, buffers and random state of `net` are left as they are.

    Args:
        net: any module whose forward pass uses torch operations.
        example: an input batch ``[B, C, H, W]``, or a tuple of arguments.
        protect: shell-style patterns on group names and module names that must not be cut.
        try_cut: whether to try every group.

    Returns:
        The table at the full size of `net`; ``table.refused`` has the reasons.

    Raises:
        NetError: the forward pass fails on the example.
        ConfigError: a pattern of `protect` matches nothing.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> table = channel_groups(net, torch.zeros(2, 1, 4, 4))
    >>> table.widths(), table.refused
    ({'0': 4}, {'3': "reaches the network's output"})
    >>> table["0"].cost
    Cost(params=18.0, macs=44.0)
    """
    net = unwrap(net)
    patterns = [protect] if isinstance(protect, str) else list(protect)
    _check_patterns(net, patterns)
    args = example if isinstance(example, tuple) else (example,)
    check_precision(net, args)
    with _untouched_random_state(args):
        table = _protected(_read(net, args), patterns)
        return try_groups(net, args, table) if try_cut else table


@contextmanager
def _untouched_random_state(args: tuple[Any, ...]) -> Iterator[None]:
    devices = sorted({tensor.get_device() for tensor in tensors_in(args) if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices):
        yield


def small_batch(args: tuple[Any, ...], size: int = 2) -> tuple[Any, ...]:
    """The arguments with `size` examples: enough for batch statistics, no more."""

    def fit(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        repeats = -(-size // value.shape[0]) if value.shape[0] else 1
        return torch.cat([value.detach()] * repeats)[:size]

    return tuple(fit(value) for value in args)


def _read(net: nn.Module, args: tuple[Any, ...]) -> ChannelTable:
    scratch = copy_net(net)
    shapes = {n: tuple(t.shape) for n, t in [*scratch.named_buffers(), *scratch.named_parameters()]}
    tracer = Tracer(scratch)
    two = small_batch(args)
    try:
        _forward(tracer, set_mode(scratch, False), two)
    except Exception as error:
        raise NetError(f"the forward pass failed on the example: {type(error).__name__}: {error}") from error
    # Heads that only run while training (auxiliary classifiers) read channels too.
    tracer.count_uses = False
    try:
        _forward(tracer, set_mode(scratch, True), two)
    except Exception as error:
        tracer.leave()
        warnings.warn(
            f"the forward pass in train mode failed ({type(error).__name__}: {first_line(error)}); channels that "
            "only layers of the train mode read may be cut away from them: pass an example that also runs in train mode",
            stacklevel=3,
        )
    batch = next((t.shape[0] for t in tensors_in(two) if t.dim()), 1)
    parameters = frozenset(name for name, _ in scratch.named_parameters())
    return _table(tracer, shapes, parameters, batch)


@torch.no_grad()
def _forward(tracer: Tracer, net: nn.Module, args: tuple[Any, ...]) -> None:
    args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
    for tensor in tensors_in(args):
        tracer.set(tensor, None, "reads the network's input")
    with tracer:
        output = net(*args)
    tracer.finish(output)


def _table(
    tracer: Tracer, shapes: Mapping[str, tuple[int, ...]], parameters: frozenset[str], batch: int
) -> ChannelTable:
    ledger = tracer.ledger
    roots = {key: ledger.roots(labels) for key, labels in tracer.axis_labels.items()}
    first: dict[int, tuple[tuple[bool, int], str, int]] = {}
    for label, (order, tensor, position) in tracer.producers.items():
        # A layer with weights gives the name before a channel map does.
        candidate = ((tensor in tracer.map_inputs, order), tensor, position)
        root = ledger.find(label)
        if root not in first or candidate < first[root]:
            first[root] = candidate
    read = {root for labels in tracer.consumed for root in ledger.roots(labels).reshape(-1).tolist()}
    by_name: dict[str, list[tuple[int, int]]] = {}
    order_of: dict[str, tuple[bool, int]] = {}
    refused: dict[str, str] = {}
    alone = {int(labels[0]) for labels in roots.values() if bool((labels == labels[0]).all())}
    for root, (rank, tensor, position) in first.items():
        name = _group_name(tensor)
        order_of[name] = min(rank, order_of.get(name, rank))
        reason = ledger.reason(root)
        if reason is None and root not in read:
            reason = "no convolution or linear layer reads it"
        if reason is None and root in alone:
            reason = "is all that a layer has: nothing would be left"
        if reason is not None:
            refused.setdefault(name, reason)
        else:
            by_name.setdefault(name, []).append((position, root))
    for name in [name for name, units in by_name.items() if len(units) == 1]:
        refused[name] = "has only one unit that could be removed"
        del by_name[name]
    refused = {name: refused[name] for name in sorted(refused, key=order_of.__getitem__) if name not in by_name}
    refused = {**tracer.computed, **refused}

    units_of = {name: [root for _, root in sorted(units)] for name, units in by_name.items()}
    names = sorted(units_of, key=order_of.__getitem__)
    where = _UnitLookup(names, units_of)
    members: dict[str, list[Member]] = {name: [] for name in names}
    for (tensor, axis), labels in roots.items():
        role: Role = _role(tracer.roles[tensor, axis])
        for name, index in where.positions(labels).items():
            members[name].append(Member(tensor, axis, index, role))
    sizes: dict[str, tuple[str, str, int | None]] = {}
    all_shapes = dict(shapes)
    for where_held, labels in tracer.sizes.items():
        path, attribute, at = where_held
        name = f"{path}.{attribute}" + ("" if at is None else f"[{at}]")
        for group, index in where.positions(ledger.roots(labels)).items():
            members[group].append(Member(name, 0, index, "size"))
            sizes[name], all_shapes[name] = where_held, (labels.numel(),)
    maps = {}
    for index_name, inputs in tracer.map_inputs.items():
        labels = ledger.roots(inputs)
        weight_name = f"{index_name.removesuffix('index')}weight"
        unused = tracer.tensors[weight_name].cpu() == 0
        slots = labels[tracer.tensors[index_name].cpu()].masked_fill(unused, -1)
        for name, index in where.positions(slots).items():
            members[name].append(Member(weight_name, 0, index, "map"))
        maps[index_name] = MapInput(labels.numel(), where.units(labels))
    groups = [ChannelGroup(name, len(units_of[name]), tuple(members[name])) for name in names]
    uses = tuple((tensor, positions // batch) for tensor, positions in tracer.uses)
    facts = NetFacts(all_shapes, parameters, uses, maps, tracer.fixed_macs // batch, sizes)
    return ChannelTable(groups, facts, refused)


class _UnitLookup:
    """From the representative of a class to its group and unit."""

    def __init__(self, names: list[str], units_of: Mapping[str, list[int]]) -> None:
        self.names = names
        self.unit_of = {root: (at, unit) for at, name in enumerate(names) for unit, root in enumerate(units_of[name])}
        self.channels = [len(units_of[name]) for name in names]

    def _rows(self, roots: Tensor) -> Tensor:
        """``[size, 2]``: group number and unit, -1 where nothing can be cut."""
        values, inverse = roots.unique(return_inverse=True)
        rows = [self.unit_of.get(root, (-1, -1)) for root in values.tolist()]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)[inverse]

    def positions(self, roots: Tensor) -> dict[str, Tensor]:
        """Where the units of each group are on one axis: ``[channels, k]``, -1 for nothing."""
        rows = self._rows(roots)
        tables = {}
        for group in rows[:, 0].unique().tolist():
            if group < 0:
                continue
            positions = (rows[:, 0] == group).nonzero().squeeze(1)
            units, order = rows[positions, 1].sort(stable=True)
            counts = torch.bincount(units, minlength=self.channels[group])
            column = torch.arange(units.numel()) - (counts.cumsum(0) - counts)[units]
            index = torch.full((self.channels[group], int(counts.max())), -1, dtype=torch.int64)
            index[units, column] = positions[order]
            tables[self.names[group]] = index
        return tables

    def units(self, roots: Tensor) -> tuple[tuple[str, Tensor], ...]:
        """Per group on this axis, the unit of every position, or -1."""
        rows = self._rows(roots)
        return tuple(
            (self.names[group], torch.where(rows[:, 0] == group, rows[:, 1], -1))
            for group in rows[:, 0].unique().tolist()
            if group >= 0
        )


def _group_name(tensor: str) -> str:
    path, _, leaf = tensor.rpartition(".")
    return path if path and leaf in ("weight", "index") else tensor


def _role(roles: set[str]) -> Role:
    if "in" in roles:
        return "in"
    return "out" if "out" in roles else "through"


def _check_patterns(net: nn.Module, patterns: Sequence[str]) -> None:
    names = [name for name, _ in net.named_modules() if name] + [name for name, _ in net.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3)
            hint = f"near names: {', '.join(near)}" if near else f"names look like {', '.join(names[:3])}"
            raise ConfigError(f"expected a protect pattern that matches a module, got {pattern!r}; {hint}")


def _protected(table: ChannelTable, patterns: Sequence[str]) -> ChannelTable:
    reasons = {}
    for group in table:
        names = {group.name}
        for member in group.members:
            # A protected layer keeps its own output channels; what it reads may still shrink.
            if member.role in ("out", "through"):
                path = member.tensor.rpartition(".")[0]
                names |= {
                    member.tensor,
                    *(path[:at] for at, letter in enumerate(path) if letter == "."),
                    path,
                }
        for pattern in patterns:
            if any(fnmatchcase(name, pattern) for name in names):
                reasons[group.name] = f"protected by {pattern!r}"
                break
    return table.without(reasons) if reasons else table
