"""Unstructured sparsity: zeros in the remaining channels, which stay zero while the network is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyrobnn.distributions.markov import run_length
from pyrobnn.errors import ConfigError
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate
from pyrobnn.nets.replica import copy_net
from pyrobnn.pipeline.acceptance import worth_trying

if TYPE_CHECKING:
    from pyrobnn.pipeline.context import Context
    from pyrobnn.pipeline.state import State

STEPS_OF_SEARCH = 7  # bisections of the share of weights kept, under --max-drop


@dataclass(frozen=True)
class Zeros:
    """Which single weights stay.

    Attributes:
        keep: boolean masks per tensor of the current network, false where a weight becomes zero.
        report: what to say about them (plain data).
    """

    keep: dict[str, Tensor]
    report: dict[str, Any]


class KeepZeros(Callback):
    """Holds the masked weights of a plain network at exactly zero, from the start and after each step."""

    def __init__(self, keep: Mapping[str, Tensor]) -> None:
        self.keep = dict(keep)

    def on_start(self, state: FitState) -> FitUpdate:
        tensors = dict(state.model.net.named_parameters())
        self.keep = {name: mask.to(tensors[name].device) for name, mask in self.keep.items()}
        return self.on_batch_end(state)

    @torch.no_grad()
    def on_batch_end(self, state: FitState) -> FitUpdate:
        tensors = dict(state.model.net.named_parameters())
        # Not a product with the mask: that makes negative zeros, which sparse storage keeps.
        zeroed = {f"net.{name}": tensors[name].masked_fill(~mask, 0.0) for name, mask in self.keep.items()}
        return FitUpdate(tensors=zeroed)


class SupportPrice(Callback):
    """Weights the KL of gates on single weights by a multiplier, set by dual ascent on the share of non-zero parameters.

    Every `every` steps it grows by `rate` if more weights are in use (log-odds above 0) than the goal
    allows and falls by `rate` if fewer are.

    Args:
        goal: share of `dense` parameters that may be non-zero.
        dense: parameters of the dense network.
        start: first multiplier.
        rate: relative change per update.
        every: steps between updates.
        bounds: range of the multiplier.

    Raises:
        ConfigError: a goal outside (0, 1], or a rate that is not positive.
    """

    def __init__(
        self,
        goal: float,
        dense: float,
        *,
        start: float = 1.0,
        rate: float = 0.1,
        every: int = 20,
        bounds: tuple[float, float] = (1e-2, 1e4),
    ) -> None:
        if not 0 < goal <= 1 or rate <= 0:
            raise ConfigError(f"the price of weights needs a goal in (0, 1] and a positive rate, got {goal} and {rate}")
        self.goal, self.dense = goal, dense
        self.multiplier, self.rate, self.every, self.bounds = start, rate, every, bounds
        self._sites: list[str] = []

    def on_start(self, state: FitState) -> FitUpdate:
        self._sites = [site for site in state.guide.moments() if site.endswith(".gate")]
        return self._update()

    def on_batch_end(self, state: FitState) -> FitUpdate | None:
        if state.step % self.every:
            return None
        over = nonzero_share(state.model.net, state.guide.weight_odds(), self.dense) > self.goal
        self.multiplier *= 1 + self.rate if over else 1 / (1 + self.rate)
        self.multiplier = min(max(self.multiplier, self.bounds[0]), self.bounds[1])
        return self._update()

    def _update(self) -> FitUpdate:
        return FitUpdate(kl_weights=dict.fromkeys(self._sites, self.multiplier))

    def state_dict(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.multiplier = float(state["multiplier"])


def nonzero_share(net: nn.Module, odds: Mapping[str, Tensor], dense: float) -> float:
    """Parameters in use, as a share of `dense`: weights with log-odds above 0, and all others.

    `net` is a model's network, which holds the random weights as buffers.
    """
    others = sum(p.numel() for name, p in net.named_parameters() if name not in odds)
    return (others + sum(int((value > 0).sum()) for value in odds.values())) / dense


def zero_goal(context: Context, rounds: float) -> float:
    """What may be non-zero after so many rounds: a geometric path to the target."""
    return float(context.config.target_nonzero or 1.0) ** (rounds / len(context.epochs.infer))


def apply_zeros(net: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Set masked weights to zero, in place."""
    tensors = dict(net.named_parameters())
    with torch.no_grad():
        for name, mask in keep.items():
            tensors[name].masked_fill_(~mask.to(tensors[name].device), 0.0)


def counts(net: nn.Module, keep: Mapping[str, Tensor]) -> dict[str, Any]:
    """How many weights are other than zero, counted on the tuned tensors.

    A weight that an earlier tuning had at zero may have been let stay and not have moved.
    """
    tensors = dict(net.named_parameters())
    found = {name: int(tensors[name].count_nonzero()) for name in keep}
    return {"kept": sum(found.values()), "kept_by_tensor": found}


def choose_zeros(context: Context, state: State) -> Zeros:
    """Weights with log-odds above 0 stay; under a target as many as it allows, highest odds first.

    With `--max-drop` alone, as many more stay as validation accuracy needs to remain above the floor
    that a cut has to respect.
    """
    guide = context.model_of(state)[1]
    odds = {name: value.cpu() for name, value in guide.weight_odds().items()}
    line = torch.zeros(())
    if context.config.target_nonzero is not None:
        line = _line(odds, _allowed(context, state, odds))
    elif context.config.within_drop:
        line = _within_drop(context, state, odds)
    keep = masks(odds, line)
    return Zeros(keep, support_report(keep))


def masks(odds: Mapping[str, Tensor], line: Tensor) -> dict[str, Tensor]:
    """Weights above the line; the best one of a tensor stays in any case, else nothing gets through."""
    return {name: (value > line) | (value >= value.max()) for name, value in odds.items()}


def _line(odds: Mapping[str, Tensor], count: int) -> Tensor:
    """Log-odds that exactly `count` weights exceed, ties apart."""
    values = torch.cat([value.flatten() for value in odds.values()]).sort(descending=True).values
    return values[count] if count < len(values) else torch.tensor(-torch.inf)


def _allowed(context: Context, state: State, odds: Mapping[str, Tensor]) -> int:
    """How many weights the target leaves once biases and normalisation are counted."""
    others = sum(p.numel() for name, p in state.net.named_parameters() if name not in odds)
    allowed = int(float(context.config.target_nonzero or 1.0) * context.dense_cost.params) - others
    if allowed < len(odds):
        context.say(
            f"--target-nonzero is out of reach: {others} biases and normalisation parameters are left beside it"
        )
    return max(allowed, len(odds))


def _within_drop(context: Context, state: State, odds: Mapping[str, Tensor]) -> Tensor:
    """The line nearest to 0 from below at which validation accuracy stays above the floor."""
    assert state.base is not None
    least = worth_trying(state.base, context.config.max_drop, state.base_error, context.point(state.base))
    net = copy_net(state.net)

    def good(line: Tensor) -> bool:
        net.load_state_dict(state.net.state_dict())
        apply_zeros(net, masks(odds, line))
        return float(context.score(context.refreshed(net)) or 0.0) >= least

    line = torch.zeros(())
    if good(line):
        return line
    total = sum(value.numel() for value in odds.values())
    few, many = sum(int((value > 0).sum()) for value in odds.values()), total
    for _ in range(STEPS_OF_SEARCH):
        middle = (few + many) // 2
        if good(_line(odds, middle)):
            many = middle
        else:
            few = middle
    return _line(odds, many)


def support_report(keep: Mapping[str, Tensor]) -> dict[str, Any]:
    """Weights and whole kernels that are zero, and the runs of those that are not.

    Runs are counted along each filter's weights (input channel, then kernel taps); `chance` is the mean
    run of independent weights at the same share of zeros, tensor by tensor.
    """
    ones = runs = chance_runs = 0.0
    kernels = empty = 0
    for mask in keep.values():
        rows = mask.reshape(len(mask), -1)
        count = int(mask.sum())
        length, chance = run_length(rows)
        ones, runs, chance_runs = ones + count, runs + count / length, chance_runs + count / chance
        if mask.dim() > 2:
            flat = mask.flatten(2).any(-1)
            kernels, empty = kernels + flat.numel(), empty + int((~flat).sum())
    return {
        "weights": sum(mask.numel() for mask in keep.values()),
        "kept": int(ones),
        "kernels": kernels,
        "empty_kernels": empty,
        "mean_run": ones / runs,
        "mean_run_by_chance": ones / chance_runs,
        "kept_by_tensor": {name: int(mask.sum()) for name, mask in keep.items()},
    }
