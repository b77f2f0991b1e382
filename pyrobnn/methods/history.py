"""Norm histories and the pair regulariser of History Based Filter Pruning (Basha et al., Neurocomputing 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrobnn.channels.parts import gather_padded, per_unit
from pyrobnn.criteria.pairs import Elimination, eliminate, history_distances, symmetric_kl
from pyrobnn.criteria.scores import moments_of
from pyrobnn.distributions.folded import expected_abs
from pyrobnn.errors import ConfigError
from pyrobnn.guides.base import site_key
from pyrobnn.inference.callbacks import Callback, FitState, FitUpdate
from pyrobnn.summary.reading import site_moments
from pyrobnn.summary.saliency import producers

if TYPE_CHECKING:
    from pyrobnn.inference.terms import Step
    from pyrobnn.model import BayesianModel


class NormHistory(Callback):
    """The L1 norm of every filter over training: of the weights, or its expectation under the posterior.

    Args:
        number: of the round. A later round speaks of another network and starts afresh.
        per_epoch: records per epoch. The paper has one; where a round has two epochs instead of two
            hundred, more are needed for a trajectory.
        distance: what makes a pair close: `"norm"`, the Manhattan distance of the trajectories, or
            `"kl"`, the symmetric KL between the posteriors of the two filters' weights, summed over the
            records (ours; needs a guide with random weights).

    Attributes:
        norms: `{group: [records, channels]}`.
        apart: `{group: [channels, channels]}`, the summed KLs, with `distance="kl"`.

    Raises:
        ConfigError: another distance, or no records; at the start of a fit, `"kl"` without random weights.
    """

    def __init__(self, number: int = 0, *, per_epoch: int = 4, distance: str = "norm") -> None:
        if distance not in ("norm", "kl") or per_epoch < 1:
            raise ConfigError(
                f"a history needs distance 'norm' or 'kl' and per_epoch of at least 1, got {distance!r}, {per_epoch}"
            )
        self.number, self.per_epoch, self.distance = number, per_epoch, distance
        self.norms: dict[str, Tensor] = {}
        self.apart: dict[str, Tensor] = {}

    def on_start(self, state: FitState) -> None:
        if self.distance == "kl" and not state.model.held:
            raise ConfigError("distance='kl' compares posteriors of weights, and no weight is random: use 'norm'")
        if not self.norms:
            self._record(state)

    def on_batch_end(self, state: FitState) -> None:
        if state.step % max(1, state.steps_per_epoch // self.per_epoch) == 0:
            self._record(state)

    @torch.no_grad()
    def _record(self, state: FitState) -> None:
        table = state.model.groups
        if table is None:
            raise ConfigError("a history of filters needs the channel groups: give BayesianModel groups=")
        moments = {**moments_of(state.model.net), **site_moments(state.model, state.guide)}
        for group in table:
            total = torch.zeros(group.channels)
            for member in producers(group, table.facts.shapes):
                loc, scale = moments[member.tensor]
                total = total + per_unit(expected_abs(loc, scale), member.axis, member.index)
                if self.distance == "kl" and member.tensor in state.model.held:
                    rows = [_rows(part, member.axis, member.index, fill) for part, fill in ((loc, 0.0), (scale, 1.0))]
                    self._add_apart(group.name, symmetric_kl(*rows).float())
            old = self.norms.get(group.name)
            self.norms[group.name] = total[None] if old is None else torch.cat([old, total[None]])

    def _add_apart(self, group: str, value: Tensor) -> None:
        self.apart[group] = self.apart[group] + value if group in self.apart else value

    def eliminations(self, drop: str = "lower") -> dict[str, Elimination]:
        """Per group, the order in which its filters go (see :func:`~pyrobnn.criteria.pairs.eliminate`)."""
        return {
            name: eliminate(self.apart.get(name, history_distances(norms)), norms.sum(0), drop)
            for name, norms in self.norms.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "norms": dict(self.norms), "apart": dict(self.apart)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["number"] == self.number:
            self.norms, self.apart = dict(state["norms"]), dict(state["apart"])


def _rows(value: Tensor, axis: int, index: Tensor, fill: float) -> Tensor:
    """The taps of each channel, `[channels, K]`; padding rows are `fill`."""
    rows = value.detach().float().cpu().movedim(axis, 0).flatten(1)
    rows = torch.cat([rows, rows.new_full((1, rows.shape[1]), fill)])
    return rows[index.cpu()].flatten(1)


class SimilarPairs(Callback):
    """Chooses the closest pairs during the fit, and from then on makes their norms more similar.

    The loss gets λ (e^R − 1), R the mean over pairs of |‖w_i‖₁ − ‖w_j‖₁|, relative to the mean norm of the
    group, summed over groups. In the authors' code R enters as a number computed once, which has no
    gradient; `gradient=False` does the same, as a control.

    Args:
        history: recorded beside this callback, before it in the list of callbacks.
        fraction: share of each group's filters that loses its pair.
        start: progress at which the pairs are chosen.
        weight: λ; 0.1 in the authors' code.
        drop: see :func:`~pyrobnn.criteria.pairs.eliminate`.
        gradient: False makes R a constant.

    Attributes:
        orders: per group the order of elimination, once chosen.

    Raises:
        ConfigError: a fraction or start outside [0, 1], or a negative weight.
    """

    nll_weight = 1.0

    def __init__(
        self,
        history: NormHistory,
        fraction: float,
        *,
        start: float = 0.5,
        weight: float = 0.1,
        drop: str = "lower",
        gradient: bool = True,
    ) -> None:
        if not 0 <= fraction <= 1 or not 0 <= start <= 1 or weight < 0:
            raise ConfigError(
                f"similar pairs need fraction and start in [0, 1] and weight of at least 0, got {fraction}, {start}, {weight}"
            )
        self.history, self.fraction, self.start, self.weight = history, fraction, start, weight
        self.drop, self.gradient = drop, gradient
        self.orders: dict[str, Elimination] = {}

    def on_start(self, state: FitState) -> FitUpdate | None:
        return FitUpdate(terms=(self,)) if self.orders else self.on_batch_end(state)  # resumed, or fresh

    def on_batch_end(self, state: FitState) -> FitUpdate | None:
        if self.orders or state.progress < self.start:
            return None
        self.orders = self.history.eliminations(self.drop)
        return FitUpdate(terms=(self,))

    def chosen(self, group: str) -> Tensor:
        """`[P, 2]`: the pairs of a group that the penalty acts on (goes, stays)."""
        order = self.orders[group]
        return order.pairs[: int(self.fraction * (len(order.pairs) + 1))]

    def distance(self, model: BayesianModel, guide: Any) -> Tensor:
        """R, with gradients."""
        table = model.groups
        assert table is not None
        parameters = dict(model.net.named_parameters())
        total = torch.zeros(())
        for name in self.orders:
            pairs = self.chosen(name)
            if not len(pairs):
                continue
            norms = torch.zeros(())
            for member in producers(table[name], table.facts.shapes):
                magnitude = _magnitude(member.tensor, parameters, guide)
                by_row = magnitude.movedim(member.axis, 0).flatten(1).sum(1)
                norms = norms + gather_padded(by_row, member.index).sum(1)
            pairs = pairs.to(norms.device)
            gap = (norms[pairs[:, 0]] - norms[pairs[:, 1]]).abs().mean()
            total = total + gap / norms.detach().mean().clamp_min(1e-12)
        return total

    def __call__(self, step: Step) -> Tensor:
        """The term of the loss (see :class:`~pyrobnn.inference.terms.Term`)."""
        distance = self.distance(step.model, step.guide)
        return self.weight * torch.expm1(distance if self.gradient else distance.detach())

    def state_dict(self) -> dict[str, Any]:
        return {
            "number": self.history.number,
            "pairs": {name: order.pairs for name, order in self.orders.items()},
            "distances": {name: order.distances for name, order in self.orders.items()},
            "typical": {name: order.typical for name, order in self.orders.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["number"] == self.history.number:
            self.orders = {
                name: Elimination(pairs, state["distances"][name], state["typical"][name])
                for name, pairs in state["pairs"].items()
            }


def _magnitude(name: str, parameters: Mapping[str, Tensor], guide: Any) -> Tensor:
    """|w| of a trained weight, E|w| of a random one (mean-field Gaussian guide), with gradients."""
    if name in parameters:
        return parameters[name].abs()
    key = site_key(name)
    return expected_abs(guide.loc[key], guide.log_scale[key].exp())
