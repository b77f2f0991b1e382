"""Pairs by history: distances, orders by hand, symmetric KL against torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pyrobnn.channels.compounding import compounded
from pyrobnn.criteria.pairs import Elimination, closest_pairs, eliminate, history_distances, symmetric_kl
from pyrobnn.errors import ConfigError


def test_manhattan_distances() -> None:
    norms = torch.tensor([[1.0, 2.0, 5.0], [1.0, 0.0, 5.5]])
    assert history_distances(norms).tolist() == [[0, 2, 8.5], [2, 0, 8.5], [8.5, 8.5, 0]]


def test_closest_pairs_may_share_a_filter() -> None:
    distances = history_distances(torch.tensor([[0.0, 1.0, 1.5, 9.0]]))
    assert closest_pairs(distances, 2).tolist() == [[1, 2], [0, 1]]
    assert len(closest_pairs(distances, 100)) == 6


@pytest.mark.parametrize(
    ("drop", "pairs", "scores"),
    [
        # 1-2 first (0.5); then 0-2 (1.5) where 1 is gone, 0-1 (1.0) where 2 is gone; 3 is far.
        ("lower", [[1, 2], [0, 2], [2, 3]], [1.5, 0.5, 7.5, 15.0]),
        ("higher", [[2, 1], [1, 0], [3, 0]], [18.0, 1.0, 0.5, 9.0]),
    ],
)
def test_elimination_by_hand(drop: str, pairs: list[list[int]], scores: list[float]) -> None:
    norms = torch.tensor([[0.0, 1.0, 1.5, 9.0]])
    order = eliminate(history_distances(norms), norms.sum(0), drop)
    assert order.pairs.tolist() == pairs
    assert order.scores().tolist() == scores
    assert bool((order.distances.diff() >= 0).all())


def test_every_filter_but_one_goes_once() -> None:
    norms = torch.rand(5, 60, generator=torch.Generator().manual_seed(0))
    order = eliminate(history_distances(norms), norms.sum(0))
    gone = order.pairs[:, 0].tolist()
    assert len(set(gone)) == 59
    for k, (goes, stays) in enumerate(order.pairs.tolist()):
        assert norms[:, goes].sum() <= norms[:, stays].sum()
        assert stays not in gone[:k]  # there to stand in for it
    assert len(eliminate(torch.zeros(1, 1), torch.ones(1)).pairs) == 0
    assert eliminate(torch.zeros(1, 1), torch.ones(1)).scores().tolist() == [1.0]
    with pytest.raises(ConfigError, match="lower"):
        eliminate(torch.zeros(2, 2), torch.ones(2), "both")


def test_parts_have_no_unit_and_are_bounded() -> None:
    norms = torch.rand(5, 20, generator=torch.Generator().manual_seed(0))
    order = eliminate(history_distances(norms), norms.sum(0))
    parts = order.parts()
    torch.testing.assert_close(eliminate(history_distances(7 * norms), 7 * norms.sum(0)).parts(), parts)
    assert parts.argsort().tolist() == order.scores().argsort().tolist()
    # Two filters 1 apart and one at 100: scores 1, 99 and 198, mean distance (1 + 100 + 99) / 3.
    far = torch.tensor([[0.0, 1.0, 100.0]])
    found = eliminate(history_distances(far), far[0])
    assert found.typical == pytest.approx(200 / 3)
    assert found.parts().tolist() == pytest.approx([3 / 203, 297 / 497, 594 / 794])
    assert eliminate(torch.zeros(3, 3), torch.ones(3)).parts().tolist() == [0.0, 0.0, 0.0]


def test_one_far_filter_hardly_makes_the_others_cheap() -> None:
    def cost_of_250(norm: float, of: Callable[[Elimination], torch.Tensor]) -> float:
        norms = torch.cat([torch.linspace(1, 2, 256), torch.tensor([norm])])[None]
        scores = of(eliminate(history_distances(norms), norms[0]))
        return float(compounded(scores / scores.sum()).sort().values[:250].sum())

    assert cost_of_250(30.0, Elimination.parts) > 0.5 * cost_of_250(3.0, Elimination.parts)
    assert cost_of_250(30.0, Elimination.scores) < 0.1 * cost_of_250(3.0, Elimination.scores)  # what parts are for


def test_symmetric_kl() -> None:
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(5, 30, generator=generator)
    scale = 0.05 + torch.rand(5, 30, generator=generator)
    found = symmetric_kl(loc, scale)
    for i in range(5):
        for j in range(5):
            a, b = Normal(loc[i].double(), scale[i].double()), Normal(loc[j].double(), scale[j].double())
            wanted = float((kl_divergence(a, b) + kl_divergence(b, a)).sum())
            assert float(found[i, j]) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
