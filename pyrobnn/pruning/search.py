"""The largest cut that a measured quality allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from pyrobnn.errors import ConfigError, PlanError
from pyrobnn.groups import ChannelTable
from pyrobnn.pruning.compact import compact
from pyrobnn.pruning.criteria import Limits, plan_for_budget
from pyrobnn.pruning.plan import PruningPlan


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
) -> PruningPlan:
    """Bisection on the share of MACs left: the smallest network whose quality is at least `least`.

    Args:
        net: a plain network.
        table: its channel table.
        nats: `{group: [channels]}`, what is lost if a unit goes (from a posterior's channels).
        quality: measures a compact network, for example its validation accuracy with BatchNorm
            statistics measured again. Called about log2(1 / tolerance) times.
        least: the quality that must be kept.
        smallest: share of the MACs that is left at the least.
        limits: see :class:`~pyrobnn.pruning.criteria.Limits`.
        tolerance: width of the interval at which the search ends.

    Returns:
        The plan; nothing is cut if no cut keeps the quality.

    Raises:
        ConfigError: `smallest` outside [0, 1), or a tolerance that is not positive.
    """
    if not 0 <= smallest < 1 or tolerance <= 0:
        raise ConfigError(f"the search needs smallest in [0, 1) and tolerance > 0, got {smallest:g} and {tolerance:g}")
    low, high = smallest, 1.0
    best = PruningPlan.full(table)
    while high - low > tolerance:
        middle = (low + high) / 2
        try:
            trial = plan_for_budget(nats, table, target_macs=middle, limits=limits)
        except PlanError:  # below what the limits leave
            low = middle
            continue
        if quality(compact(net, trial, None, groups=table)) >= least:
            best, high = trial, middle
        else:
            low = middle
    return best
