"""Paired tests against scipy, exact answers and simulated coverage."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from pyrobnn.errors import DataError
from pyrobnn.metrics.metric import accuracy, rmse
from pyrobnn.metrics.paired import compare, mcnemar, paired_interval


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (0, 5), (3, 3), (2, 9), (40, 70), (900, 1000)])
def test_mcnemar_is_the_binomial_test(won: int, lost: int) -> None:
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == mcnemar(lost, won) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("won", "lost"), [(0.02, 0.05), (0.01, 0.01), (0.0, 0.03)])
def test_the_interval_covers(won: float, lost: float) -> None:
    generator, hits, tries, count = torch.Generator().manual_seed(0), 0, 1000, 300
    for _ in range(tries):
        kinds = torch.multinomial(
            torch.tensor([won, lost, 1 - won - lost]), count, replacement=True, generator=generator
        )
        low, high = paired_interval(int((kinds == 0).sum()), int((kinds == 1).sum()), count)
        hits += low <= won - lost <= high
    assert 0.93 <= hits / tries <= 0.995


def test_accuracy_is_compared_by_mcnemar() -> None:
    dense, compact = torch.ones(200, 1).double(), torch.ones(200, 1).double()
    compact[:12], dense[-2:] = 0, 0
    found = compare(accuracy(), dense, compact)
    assert (found.test, found.only_dense_right, found.only_compact_right) == ("McNemar", 12, 2)
    assert found.difference == -0.05 and found.p_value == pytest.approx(binomtest(2, 14).pvalue)
    assert found.interval[1] < 0 and found.claim.startswith(
        "The compact network is worse: accuracy −5.00 points on 200"
    )
    same = compare(accuracy(), dense, dense)
    assert same.p_value == 1.0 and "No difference of accuracy can be claimed from 200" in same.claim
    assert f"a loss of up to {-100 * same.interval[0]:.2f} points cannot be ruled out" in same.claim
    assert compare(accuracy(), compact, dense).claim.startswith("The compact network is better: accuracy +5.00")
    assert same.to_dict()["interval"] == list(same.interval)


def test_other_figures_are_compared_by_a_bootstrap() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(1)).double()
    dense = noise.square()[:, None]
    worse = compare(rmse(), dense, 1.5 * dense)
    assert worse.test == "paired bootstrap" and worse.p_value < 0.01
    assert worse.difference == pytest.approx(float(1.5**0.5 - 1) * float(dense.mean().sqrt()))
    assert worse.interval[0] < worse.difference < worse.interval[1] and "is worse: RMSE +0.2" in worse.claim
    shuffled = dense[torch.randperm(400, generator=torch.Generator().manual_seed(2))]
    level = compare(rmse(), dense, shuffled)
    assert level.interval[0] < 0 < level.interval[1] and level.p_value > 0.5
    assert "No difference of RMSE" in level.claim and "points" not in level.claim


def test_only_the_same_examples_can_be_compared() -> None:
    with pytest.raises(DataError, match="the same examples"):
        compare(accuracy(), torch.ones(3, 1), torch.ones(4, 1))
