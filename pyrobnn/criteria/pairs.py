"""Pairs of filters with similar histories, and which of each pair goes (HBFP)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.errors import ConfigError


def history_distances(norms: Tensor) -> Tensor:
    """Manhattan distance between norm trajectories, `[T, n]` to `[n, n]` (Basha et al. 2024)."""
    return (norms.unsqueeze(2) - norms.unsqueeze(1)).abs().sum(0)


def closest_pairs(distances: Tensor, count: int) -> Tensor:
    """The `count` pairs with the smallest distances, `[count, 2]`; a filter may be in several.

    Args:
        distances: `[n, n]`, symmetric.
        count: pairs wanted; fewer where there are not so many.
    """
    first, second = torch.triu_indices(len(distances), len(distances), offset=1)
    order = torch.argsort(distances[first, second], stable=True)[:count]
    return torch.stack([first[order], second[order]], 1)


@dataclass(frozen=True)
class Elimination:
    """In which order the filters of a group go, one of the closest remaining pair at a time.

    Attributes:
        pairs: `[n - 1, 2]`: the filter that goes, and the one that stays for it.
        distances: `[n - 1]`, of these pairs, ascending.
        typical: mean distance of all pairs of the group; 0 where all filters are alike.
    """

    pairs: Tensor
    distances: Tensor
    typical: float

    def scores(self) -> Tensor:
        """`[n]`: the distance at which each filter goes; the last one has the largest of all, doubled."""
        found = self.distances.new_zeros(len(self.pairs) + 1)
        last = set(range(len(found))) - set(self.pairs[:, 0].tolist())
        found[self.pairs[:, 0]] = self.distances
        found[list(last)] = 2 * self.distances.max() if len(self.distances) else 1.0
        return found

    def parts(self) -> Tensor:
        """`[n]`: the scores s as s / (s + typical), in the same order, between 0 and 1 and without a unit.

        Sums of them are what a group has to lose. Sums of the scores themselves are not: the one filter that
        resembles no other has most of such a sum, and the farther away it is, the cheaper it makes all others
        of its group. In VGG-16 that planned 45 of 256 filters for one layer and 162 for the next.
        """
        scores = self.scores()
        return scores / (scores + (self.typical or 1.0))


def eliminate(distances: Tensor, importance: Tensor, drop: str = "lower") -> Elimination:
    """Go through the pairs by distance; where both are still there, one goes.

    Args:
        distances: `[n, n]`, symmetric.
        importance: `[n]`, the summed norms H of the filters.
        drop: which one goes: of `"lower"` importance, as L1 pruning would have it, or of `"higher"`, as in
            the authors' code. The paper's abstract says "based on its importance" only.

    Raises:
        ConfigError: another `drop`.
    """
    if drop not in ("lower", "higher"):
        raise ConfigError(f"drop must be 'lower' or 'higher' (the authors' code), got {drop!r}")
    n = len(distances)
    alive = [True] * n
    weight = importance.tolist()
    pairs, at = [], []
    for i, j in closest_pairs(distances, n * n).tolist():
        if not (alive[i] and alive[j]):
            continue
        lower, higher = (i, j) if weight[i] < weight[j] else (j, i)
        goes, stays = (lower, higher) if drop == "lower" else (higher, lower)
        alive[goes] = False
        pairs.append((goes, stays))
        at.append(float(distances[i, j]))
        if len(pairs) == n - 1:
            break
    typical = float(distances.double().sum()) / max(1, n * (n - 1))
    return Elimination(torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), torch.tensor(at), typical)


def symmetric_kl(loc: Tensor, scale: Tensor) -> Tensor:
    """KL(q_i, q_j) + KL(q_j, q_i) between rows of independent Gaussians, `[n, K]` to `[n, n]` in float64.

    ½ Σ_k (σ_i² + δ²)/σ_j² + (σ_j² + δ²)/σ_i² − 2, with δ = μ_i − μ_j.
    """
    loc, variance = loc.double(), scale.double().square()
    precision = 1 / variance
    # δ² (1/σ_i² + 1/σ_j²) as products of matrices; one half of the symmetric sum, the other by transposition.
    half = (variance + loc.square()) @ precision.T - 2 * loc @ (loc * precision).T
    half = half + (loc.square() * precision).sum(1)
    return (0.5 * (half + half.T) - loc.shape[1]).clamp_min(0.0).fill_diagonal_(0.0)
