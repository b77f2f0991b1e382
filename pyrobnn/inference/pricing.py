"""KL weights priced by cost: the prior log-odds of a channel fall with its cost, and a budget sets the scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrobnn.channels.parts import Cost
from pyrobnn.channels.planner import Budget
from pyrobnn.errors import ConfigError
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate

MOST_LOST = 0.05  # nats an example


class PricedKL(Callback):
    """Weights each channel's KL by its current marginal price, times a multiplier set by dual ascent.

    The weight of a channel of group g is multiplier * price_g / (mean price over all channels), where
    price_g is the share of the dense MACs (or parameters, or milliseconds) that goes if one more channel of g goes,
    given the channels that the posterior still needs (inclusion probability of at least 1/2 where the
    guide has gates, else SNR of at least 1; for a gate both are the same). Every `every` steps the
    multiplier grows by `rate` if more than the goal is needed and falls by `rate` if less is: dual
    ascent on the constraint, in log space.

    This is the package's own construction; the unpriced KL is VIBNet's, and its weighting by map
    size is the special case of prices fixed at the start.

    Args:
        goal: share of `dense` that may be left: `macs`, `params`, `latency` or several of them.
        dense: cost of the dense network.
        start: first multiplier.
        rate: relative change per update.
        every: steps between updates.
        bounds: range of the multiplier.
        floor: lowest weight relative to the mean price, so that cheap channels are not free.
        site: which sites are priced, those named `<group>.<site>`; other sites keep their weight.

    Attributes:
        weights: `{group: factor}` that the KL of its site was last multiplied with.
        kl_weight: factor on the whole KL in the last step; a channel's KL counted the product of both.

    Raises:
        ConfigError: no goal, or a rate that is not positive.
    """

    def __init__(
        self,
        goal: dict[str, float],
        dense: Cost | tuple[float, float],
        *,
        start: float = 1.0,
        rate: float = 0.1,
        every: int = 20,
        bounds: tuple[float, float] = (0.05, 1e4),
        floor: float = 0.1,
        site: str = "noise",
    ) -> None:
        if not goal or rate <= 0:
            raise ConfigError(f"pricing needs a goal and a positive rate, got {goal} and {rate}")
        self.goal, self.dense = dict(goal), dense
        self.multiplier, self.rate, self.every, self.bounds, self.floor = start, rate, every, bounds, floor
        self.site = site
        self.weights: dict[str, float] = {}
        self.kl_weight = 1.0

    def begin(self, model: Any, guide: Any, information: Mapping[str, Tensor], kl_weight: float = 1.0) -> None:
        """Start where a likelihood of this curvature would end: the multiplier by bisection, the guide at equilibrium.

        The multiplier is the least one that leaves no more than the goal in need, or that at which noise and closed
        gates cost :data:`MOST_LOST` nats an example: beyond it the likelihood is not the quadratic one, and dual ascent
        goes on from there.

        Args:
            model, guide: that the fit will see; the guide's channel-level posteriors are moved in place.
            information: Fisher information of the channels' gates, `{group: [channels]}`.
            kl_weight: that the fit multiplies all KLs with.
        """
        state = FitState(model, guide)

        def at(multiplier: float) -> dict[str, Tensor]:
            self.multiplier = multiplier
            needed = {group.name: torch.ones(group.channels, dtype=torch.float64) for group in model.groups}
            for _ in range(4):  # prices depend on what is needed, and the other way round
                self._price(state, needed)
                weights = {group: kl_weight * weight for group, weight in self.weights.items()}
                guide.start_at(information, weights, kl_weight)
                needed = self._needed(state)
            return needed

        def enough(multiplier: float) -> bool:
            shares = self._budget(state).shares(at(multiplier))
            met = all(float(shares[name]) <= value for name, value in self.goal.items())
            return met or _lost(guide, information, self.site) > MOST_LOST * model.data_size

        low, high = (math.log(value) for value in self.bounds)
        if not enough(self.bounds[0]):
            while high - low > 0.01:
                middle = (low + high) / 2
                low, high = (low, middle) if enough(math.exp(middle)) else (middle, high)
            at(math.exp(high))

    def on_start(self, state: FitState) -> FitUpdate:
        if not (state.step and self.weights):  # else resumed between two updates: with the weights of the last one
            self._price(state, self._needed(state))
        return self._update()

    def on_batch_end(self, state: FitState) -> FitUpdate | None:
        self.kl_weight = state.kl_weight
        if state.step % self.every:
            return None
        needed = self._needed(state)
        shares = self._budget(state).shares(needed)
        over = any(float(shares[name]) > value for name, value in self.goal.items())
        self.multiplier *= 1 + self.rate if over else 1 / (1 + self.rate)
        self.multiplier = min(max(self.multiplier, self.bounds[0]), self.bounds[1])
        self._price(state, needed)
        return self._update()

    def _update(self) -> FitUpdate:
        return FitUpdate(kl_weights={f"{group}.{self.site}": weight for group, weight in self.weights.items()})

    def _budget(self, state: FitState) -> Budget:
        assert state.model.groups is not None
        return Budget(state.model.groups, self.goal, self.dense)

    def _needed(self, state: FitState) -> dict[str, Tensor]:
        """Per group, the channels that carry signal; at least one."""
        masks = {group.name: torch.ones(group.channels, dtype=torch.float64) for group in state.model.groups or []}
        inclusion, moments = state.guide.inclusion(), state.guide.moments()
        for group in masks:
            if group in inclusion:
                masks[group] = _at_least_one(inclusion[group].cpu(), 0.5)
            elif f"{group}.{self.site}" in moments:
                mean, sd = moments[f"{group}.{self.site}"]
                masks[group] = _at_least_one((mean.abs() / sd.clamp_min(1e-12)).cpu(), 1.0)
        return masks

    def _price(self, state: FitState, needed: dict[str, Tensor]) -> None:
        prices = self._budget(state).unit_prices(needed)
        channels = {group.name: group.channels for group in state.model.groups or []}
        total = sum(channels.values())
        mean = sum(prices[name] * n for name, n in channels.items()) / max(1, total)
        sites = state.guide.moments()
        for group, price in prices.items():
            if f"{group}.{self.site}" in sites:
                relative = max(price / max(mean, 1e-30), self.floor)
                self.weights[group] = self.multiplier * relative

    def state_dict(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier, "weights": dict(self.weights), "kl_weight": self.kl_weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.multiplier, self.weights = float(state["multiplier"]), dict(state["weights"])
        self.kl_weight = float(state["kl_weight"])


def _lost(guide: Any, information: Mapping[str, Tensor], site: str) -> float:
    """Nats that a likelihood of this curvature loses to the guide's posterior: ½ F E(θ − 1)², no more than ½ F."""
    moments, total = guide.moments(), 0.0
    for group, f in information.items():
        if f"{group}.{site}" in moments:
            mean, sd = (value.double().cpu() for value in moments[f"{group}.{site}"])
            total += float((0.5 * f.double().cpu() * (sd.square() + (1 - mean).square()).clamp_max(1.0)).sum())
    return total


def _at_least_one(statistic: Tensor, line: float) -> Tensor:
    """Mask of the channels on or above the line, and of the highest one."""
    mask = (statistic >= line).double()
    mask[statistic.argmax()] = 1.0
    return mask
