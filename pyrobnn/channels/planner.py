"""Plans for a budget: channels go in the order of what is lost with them per cost saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrobnn.channels.compounding import compounded
from pyrobnn.channels.parts import COSTS, Cost
from pyrobnn.channels.plan import PruningPlan
from pyrobnn.errors import ConfigError, NumericalError, PlanError

if TYPE_CHECKING:
    from pyrobnn.channels.table import ChannelTable


@dataclass(frozen=True)
class Limits:
    """What every plan respects.

    Attributes:
        min_channels: units that each group keeps at least.
        round_to: kept counts are multiples of this where the group is at least that wide.
        max_cut: largest share of a group's units that one plan may remove.
    """

    min_channels: int = 1
    round_to: int | None = None
    max_cut: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("min_channels", self.min_channels), ("round_to", self.round_to)):
            if not ((isinstance(value, Integral) and value >= 1) or (name, value) == ("round_to", None)):
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not (isinstance(self.max_cut, Real) and 0 < self.max_cut <= 1):
            raise ConfigError(f"max_cut must be in (0, 1], got {self.max_cut!r}")

    def __str__(self) -> str:
        binding = [f"min_channels={self.min_channels}"]
        binding += [f"round_to={self.round_to}"] if self.round_to else []
        return ", ".join(binding + ([f"max_cut={self.max_cut:g}"] if self.max_cut < 1 else []))

    def allowed(self, channels: int, wanted: int) -> int:
        """The smallest allowed count that is at least `wanted`."""
        least = max(self.min_channels, channels - int(self.max_cut * channels), 1)
        count = max(wanted, min(least, channels))
        if self.round_to and channels >= self.round_to:
            count = -(-count // self.round_to) * self.round_to
        return min(count, channels)


def plan_for_budget(
    nats: Mapping[str, Tensor],
    table: ChannelTable,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    limits: Limits | None = None,
    dense: Cost | tuple[float, float] | None = None,
) -> PruningPlan:
    """Remove units in the order of nats lost per cost saved until the budget holds.

    What is lost with a unit grows as its group empties (:func:`~pyrobnn.channels.compounding.compounded`). Marginal prices
    are recomputed as neighbours disappear (the cost is multilinear in the kept counts, piecewise where it is
    milliseconds, so one gradient gives them all). Afterwards removed units are taken back, most nats first, wherever
    the budget still allows, so no single unit more would fit. Units that cost nothing (0 or less) go in any case and are
    not taken back, even if more of the budget then stays unspent.

    Args:
        nats: `{group: [channels]}`, what is lost if a unit alone goes; one scale for all groups. Where scores have none,
            what each unit has of its group's sum.
        table: channel table of the same network.
        target_macs, target_params, target_latency: share that may be left, of `dense` (default: of this network). The
            last needs a table whose layers were timed (:func:`~pyrobnn.time_layers`).
        limits: lower bounds and multiples.
        dense: what the targets refer to, a :class:`~pyrobnn.channels.Cost` or (params, macs).

    Raises:
        ConfigError: no target, one outside (0, 1), a latency without times, or no scores.
        PlanError: the budget lies below what the limits leave, or scores of other groups or numbers of channels.
        NumericalError: a score is NaN.
    """
    limits = limits or Limits()
    check_scores(nats)
    for name, values in nats.items():
        if name not in table.names or len(values) != table[name].channels:
            raise PlanError(
                f"{len(values)} scores of group {name!r} do not fit the channel table, which has "
                f"{table[name].channels if name in table.names else 'no such group'}: take both from one network"
            )
    budget = Budget(table, {"macs": target_macs, "params": target_params, "latency": target_latency}, dense)
    groups = [group for group in table if group.name in nats]
    order = {g.name: torch.argsort(nats[g.name].double(), stable=True).tolist() for g in groups}
    lost = {g.name: compounded(nats[g.name]) for g in groups}
    gone = {}
    for g in groups:
        worth = int((nats[g.name] > 0).sum())
        gone[g.name] = g.channels - limits.allowed(g.channels, worth) if worth < g.channels else 0

    def next_chunk(name: str) -> int:
        channels = len(order[name])
        left = channels - gone[name]
        target = next((c for c in range(left - 1, 0, -1) if limits.allowed(channels, c) == c), left)
        return left - target

    met = budget.met(order, gone)
    while not met:
        prices = budget.prices(order, gone)
        choices = []
        for name in gone:
            size = next_chunk(name)
            if size == 0:
                continue
            units = order[name][gone[name] : gone[name] + size]
            saved = prices[name] * size
            if saved > 0:
                choices.append((float(lost[name][units].sum()) / saved, name, size))
        if not choices:
            raise PlanError(
                f"the budget {budget} cannot be met: with {limits}, {budget.left(order, gone)} are left; "
                "raise the target or cut deeper: a smaller min_channels or round_to, a larger max_cut"
            )
        # Prices change slowly: take several cheap chunks before computing them again.
        choices.sort()
        batch, before = choices[: max(1, len(choices) // 8)], dict(gone)
        for _, name, size in batch:
            gone[name] += size
        met = budget.met(order, gone)
        if met and len(batch) > 1:  # the last ones may not be needed: one by one
            gone.update(before)
            for _, name, size in batch:
                gone[name] += size
                if budget.met(order, gone):
                    break
    _take_back(order, gone, lost, budget, limits)
    keep = {name: sorted(int(u) for u in order[name][gone[name] :]) for name in order}
    return PruningPlan(
        keep=keep,
        channels={g.name: g.channels for g in groups},
        score={name: [float(v) for v in nats[name]] for name in order},
        reason=dict.fromkeys(order, f"fewest nats per cost saved, budget {budget}"),
    )


def check_scores(scores: Mapping[str, Tensor]) -> None:
    """Refuse scores that no decision can be read from.

    Raises:
        ConfigError: there are none.
        NumericalError: one is NaN; the message names the group and the unit.
    """
    if not scores:
        raise ConfigError(
            "there are no scores of channels to plan by: summarize a BayesianModel(..., groups=pb.channel_groups(net, example))"
        )
    for name, values in scores.items():
        if bool(values.isnan().any()):
            unit = int(values.isnan().nonzero()[0])
            raise NumericalError(
                f"the score of unit {unit} of group {name!r} is NaN: look for NaN in the network's weights and the posterior"
            )


def as_targets(goal: Mapping[str, float | None]) -> dict[str, Any]:
    """Shares by cost as the keywords of :func:`plan_for_budget`.

    >>> as_targets({"macs": 0.5})
    {'target_macs': 0.5}
    """
    return {f"target_{name}": share for name, share in goal.items()}


class Budget:
    """Targets on the costs of a network, and where a choice of units stands against them.

    Args:
        table: of the network.
        targets: share that may be left, by the name of a field of :class:`~pyrobnn.channels.Cost`; None is no target.
        dense: what they are shares of; default: the cost of `table`'s network.
    """

    def __init__(
        self,
        table: ChannelTable,
        targets: Mapping[str, float | None],
        dense: Cost | tuple[float, float] | None = None,
    ) -> None:
        self.targets: dict[str, float] = {}
        for name, value in targets.items():
            if value is not None:
                if not (isinstance(value, Real) and 0 < value < 1):
                    raise ConfigError(f"target_{name} is the share that may be left, in (0, 1), got {value!r}")
                self.targets[name] = float(value)
        if not self.targets:
            wanted = ", ".join(f"target_{name}" for name in COSTS[:-1])
            raise ConfigError(f"a budget needs {wanted} or target_{COSTS[-1]}, the share that may be left, in (0, 1)")
        if "latency" in self.targets and table.facts.times is None:
            raise ConfigError(
                "target_latency needs measured times of the layers: table = pb.time_layers(net, table, example) makes them"
            )
        self.table = table
        self._order: Mapping[str, list[int]] | None = None
        self._ranks: dict[str, Tensor] = {}  # of each unit in its group's order
        full = table.cost(None)
        whole = dense if isinstance(dense, Cost) else full if dense is None else Cost(*dense, full.latency)
        self.dense = {name: float(getattr(whole, name)) for name in COSTS}

    def __str__(self) -> str:
        return " and ".join(f"{name} <= {value:g}" for name, value in self.targets.items())

    def _masks(self, order: Mapping[str, list[int]], gone: Mapping[str, int]) -> dict[str, Tensor]:
        if order is not self._order:  # a plan asks thousands of times for the same order
            self._order, self._ranks = order, {name: torch.tensor(units).argsort() for name, units in order.items()}
        return {name: (rank >= gone[name]).double() for name, rank in self._ranks.items()}

    def shares(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What keep masks `{group: [channels]}` leave of each targeted cost, as shares of the dense ones; differentiable."""
        cost = self.table.cost(dict(masks))
        return {name: torch.as_tensor(getattr(cost, name)) / self.dense[name] for name in self.targets}

    def left(self, order: Mapping[str, list[int]], gone: Mapping[str, int]) -> str:
        """In words, what is left without the first `gone` units of each `order`."""
        shares = self.shares(self._masks(order, gone))
        return " and ".join(f"{100 * float(shares[name]):.2f} % of {name}" for name in self.targets)

    def met(self, order: Mapping[str, list[int]], gone: Mapping[str, int]) -> bool:
        """Whether all targets hold then."""
        shares = self.shares(self._masks(order, gone))
        return all(float(shares[name]) <= value + 1e-12 for name, value in self.targets.items())

    def prices(self, order: Mapping[str, list[int]], gone: Mapping[str, int]) -> dict[str, float]:
        """Share of the still violated targets that one more unit of each group would save."""
        return self.unit_prices(self._masks(order, gone))

    def unit_prices(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """The same for any keep masks `{group: [channels]}` (mean over the kept units of a group)."""
        masks = {name: mask.detach().double().requires_grad_() for name, mask in masks.items()}
        shares = self.shares(masks)
        violated = [name for name, value in self.targets.items() if float(shares[name].detach()) > value]
        total = torch.stack([shares[name].double() for name in violated or self.targets]).sum()
        gradients = torch.autograd.grad(total, list(masks.values()), allow_unused=True)
        prices = {}
        for (name, mask), gradient in zip(masks.items(), gradients, strict=True):
            kept = mask.detach() > 0
            prices[name] = 0.0 if gradient is None or not kept.any() else float(gradient[kept].mean())
        return prices


def _take_back(
    order: dict[str, list[int]], gone: dict[str, int], lost: Mapping[str, Tensor], budget: Budget, limits: Limits
) -> None:
    while True:
        candidates = []
        for name, count in gone.items():
            channels = len(order[name])
            left = channels - count
            target = next((c for c in range(left + 1, channels + 1) if limits.allowed(channels, c) == c), left)
            if target > left:
                units = order[name][count - (target - left) : count]
                worth = float(lost[name][units].sum())
                if worth > 0:
                    candidates.append((worth, name, target - left))
        for _, name, size in sorted(candidates, reverse=True):
            gone[name] -= size
            if budget.met(order, gone):
                break
            gone[name] += size
        else:
            return
