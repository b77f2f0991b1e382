"""The largest cut at which a measured quality, such as validation accuracy, stays above a floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pyrobnn.channels import ChannelTable
from pyrobnn.channels.plan import PruningPlan
from pyrobnn.channels.planner import Limits, plan_for_budget
from pyrobnn.channels.surgery import Sites, Undo, cut_
from pyrobnn.errors import ConfigError, PlanError
from pyrobnn.nets.replica import copy_net

PRICES = {"both": ("target_macs", "target_params"), "macs": ("target_macs",), "params": ("target_params",)}


def largest_cut(
    net: nn.Module,
    table: ChannelTable,
    nats: Mapping[str, Tensor],
    quality: Callable[[nn.Module], float],
    least: float,
    *,
    smallest: float = 0.0,
    limits: Limits | None = None,
    tolerance: float = 0.02,
    prices: Sequence[str] = ("both", "macs", "params"),
    copy: bool = True,
) -> PruningPlan:
    """Bisection on the share left: the smallest network of at least this quality.

    Channels go in the order of nats lost per cost saved. What a cost is differs: where most parameters
    sit in cheap linear layers, saving parameters and saving MACs are different cuts. Each kind of
    price is searched, and the plan with the smallest product of both shares is taken.

    Args:
        net: a plain network.
        table: its channel table.
        nats: `{group: [channels]}`, what is lost if a unit goes (from a posterior's channels).
        quality: measures a compact network, for example its validation accuracy with BatchNorm
            statistics measured again. Called about log2(1 / tolerance) times for each price, with one network as it is
            cut at that time, on tensors of its own; it may change these and the modes.
        copy: False cuts `net` itself for the time of each measurement, after which it is as before; for a `quality` that
            does not look at `net`.
        least: the quality that must be kept.
        smallest: share that is left at the least.
        limits: see :class:`~pyrobnn.criteria.rules.Limits`.
        tolerance: width of the interval at which a search ends.
        prices: which of `both`, `macs` and `params` to search.

    Returns:
        The plan; nothing is cut if no cut keeps the quality.

    Raises:
        ConfigError: `smallest` outside [0, 1), a tolerance that is not positive, or unknown prices.
    """
    if not 0 <= smallest < 1 or tolerance <= 0:
        raise ConfigError(f"the search needs smallest in [0, 1) and tolerance > 0, got {smallest:g} and {tolerance:g}")
    if not prices or not set(prices) <= PRICES.keys():
        raise ConfigError(f"prices must be some of {', '.join(PRICES)}, got {list(prices)}")
    dense = table.cost(None)

    def size(plan: PruningPlan) -> float:
        cost = table.after(plan).cost(None)
        return float(cost.macs) / float(dense.macs) * float(cost.params) / float(dense.params)

    scratch = copy_net(net) if copy else net

    def good(plan: PruningPlan) -> bool:
        with _cut_for_a_while(scratch, table, plan):
            return quality(scratch) >= least

    found = [_bisect(table, nats, good, PRICES[p], smallest, limits, tolerance) for p in prices]
    return min(found, key=size)


@contextmanager
def _cut_for_a_while(net: nn.Module, table: ChannelTable, plan: PruningPlan) -> Iterator[None]:
    """Cut a network to a plan, on tensors of its own, and take that back."""
    undo = Undo(net.modules())
    try:
        own: dict[int, Tensor] = {}  # what is done to the tensors must not outlive this; tied ones stay tied
        for module in net.modules():
            for held in (module._parameters, module._buffers):
                for leaf, tensor in held.items():
                    if tensor is not None:
                        if id(tensor) not in own:
                            value = tensor.detach().clone()
                            frozen = not tensor.requires_grad
                            own[id(tensor)] = (
                                nn.Parameter(value, not frozen) if isinstance(tensor, nn.Parameter) else value
                            )
                        held[leaf] = own[id(tensor)]  # type: ignore[assignment]
        cut_(Sites(net), table, table.keep_vector(plan))
        yield
    finally:
        undo()


def _bisect(
    table: ChannelTable,
    nats: Mapping[str, Tensor],
    good: Callable[[PruningPlan], bool],
    targets: Sequence[str],
    smallest: float,
    limits: Limits | None,
    tolerance: float,
) -> PruningPlan:
    low, high = smallest, 1.0
    best = PruningPlan.full(table)
    while high - low > tolerance:
        middle = (low + high) / 2
        try:
            wanted: dict[str, Any] = dict.fromkeys(targets, middle)
            trial = plan_for_budget(nats, table, limits=limits, **wanted)
        except PlanError:  # below what the limits leave
            low = middle
            continue
        if good(trial):
            best, high = trial, middle
        else:
            low = middle
    return best
