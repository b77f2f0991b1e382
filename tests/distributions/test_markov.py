"""Chains, two-level chains and crossing chains against enumeration of all supports."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pyrobnn.distributions.chains import TwoLevelChain, two_level_messages
from pyrobnn.distributions.crossing import CrossingChains, crossing_messages
from pyrobnn.distributions.markov import BinaryMarkovChain, chain_messages, run_length
from pyrobnn.errors import ConfigError

F64 = torch.float64


def sequences(n: int) -> Tensor:
    """All 0/1 sequences of length n, `[2**n, n]`."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=F64)


def chain_probability(states: Tensor, p01: float, p10: float) -> float:
    """Straight from the definition, one factor per step."""
    p = p01 / (p01 + p10)
    total = p if states[0] else 1 - p
    table = [[1 - p01, p01], [p10, 1 - p10]]
    for now, after in itertools.pairwise(states.int().tolist()):
        total *= table[now][after]
    return total


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_single_chain_is_exact(rng: torch.Generator, length: int, scale: float) -> None:
    evidence = torch.randn(4, 3, length, generator=rng, dtype=F64) * scale
    p01, p10 = torch.tensor([0.05, 0.4, 0.7], dtype=F64), torch.tensor([0.3, 0.2, 0.9], dtype=F64)
    messages = chain_messages(evidence, p01, p10)

    states = sequences(length)
    for k in range(3):
        prior = torch.tensor([chain_probability(s, float(p01[k]), float(p10[k])) for s in states], dtype=F64)
        joint = prior.log() + evidence[:, k] @ states.T
        weight = joint.softmax(-1)
        torch.testing.assert_close(messages.log_normaliser[:, k], joint.logsumexp(-1), atol=1e-10, rtol=0)
        torch.testing.assert_close(messages.posterior[:, k].sigmoid(), weight @ states, atol=1e-10, rtol=0)
        # Extrinsic: the same posterior with the element's own evidence taken out.
        for i in range(length):
            others = evidence[:, k].clone()
            others[:, i] = 0
            marginal = (prior.log() + others @ states.T).softmax(-1) @ states[:, i]
            torch.testing.assert_close(messages.extrinsic[:, k, i].sigmoid(), marginal, atol=1e-10, rtol=0)
        counts = messages.transition_counts()
        now, after = states[:, :-1], states[:, 1:]
        for got, pairs in (
            (counts.n01, (1 - now) * after),
            (counts.n0, 1 - now),
            (counts.n10, now * (1 - after)),
            (counts.n1, now),
        ):
            torch.testing.assert_close(got[:, k], weight @ pairs.sum(-1), atol=1e-10, rtol=0)


def test_chain_probability_sums_to_one_and_matches_definition() -> None:
    states = sequences(6)
    chain = BinaryMarkovChain(torch.tensor(0.15, dtype=F64), torch.tensor(0.35, dtype=F64), 6)
    expected = torch.tensor([chain_probability(s, 0.15, 0.35) for s in states], dtype=F64)
    torch.testing.assert_close(chain.log_prob(states).exp(), expected, atol=1e-12, rtol=0)
    assert expected.sum().item() == pytest.approx(1.0, abs=1e-12)
    started = BinaryMarkovChain(0.15, 0.35, 6, initial=0.9)
    probability = started.log_prob(states).exp().to(F64)
    torch.testing.assert_close(started.mean.to(F64), probability @ states, atol=1e-6, rtol=0)


def test_chain_draws_have_the_moments_of_the_chain() -> None:
    torch.manual_seed(0)
    chain = BinaryMarkovChain(torch.tensor([0.1, 0.4]), torch.tensor([0.2, 0.4]), 12)
    draws = chain.sample((20_000,))
    assert draws.shape == (20_000, 2, 12)
    torch.testing.assert_close(draws.mean(0), chain.mean, atol=0.015, rtol=0)
    turned_on = ((1 - draws[..., :-1]) * draws[..., 1:]).sum((0, 2)) / (1 - draws[..., :-1]).sum((0, 2))
    turned_off = (draws[..., :-1] * (1 - draws[..., 1:])).sum((0, 2)) / draws[..., :-1].sum((0, 2))
    torch.testing.assert_close(turned_on, chain.p01, atol=0.01, rtol=0)
    torch.testing.assert_close(turned_off, chain.p10, atol=0.01, rtol=0)


def test_chain_as_a_pyro_distribution() -> None:
    chain = BinaryMarkovChain(0.1, 0.2, 5)
    assert (chain.batch_shape, chain.event_shape) == ((), (5,))
    wide = chain.expand([3, 2])
    assert wide.sample((4,)).shape == (4, 3, 2, 5)
    assert wide.log_prob(wide.sample()).shape == (3, 2)
    p = torch.tensor(0.3, requires_grad=True)
    BinaryMarkovChain(p, 0.2, 5).log_prob(torch.tensor([0.0, 1, 1, 0, 1])).backward()
    assert p.grad is not None and p.grad.abs() > 0
    with pytest.raises(ConfigError, match="between 0 and 1"):
        chain_messages(torch.zeros(3), 0.0, 0.5)
    with pytest.raises(ConfigError, match="length"):
        BinaryMarkovChain(0.1, 0.1, 0)


def test_float32_messages_survive_extreme_evidence() -> None:
    evidence = torch.tensor([[3e4, -3e4, 3e4, 0.0, -3e4], [-3e4, 0.0, 0.0, 0.0, -3e4]])
    messages = chain_messages(evidence, 1e-4, 1e-4)
    assert torch.isfinite(messages.posterior).all() and torch.isfinite(messages.log_normaliser).all()
    exact = chain_messages(evidence.clamp(-500, 500).double(), 1e-4, 1e-4)
    torch.testing.assert_close(messages.extrinsic.double(), exact.extrinsic, atol=1e-3, rtol=1e-4)


def all_supports(filters: int, length: int) -> tuple[Tensor, Tensor]:
    """Every pair (t, s) of a small two-level chain."""
    t = sequences(filters)
    s = sequences(filters * length).reshape(-1, filters, length)
    return t, s


def two_level_joint(filters: int, length: int, p: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """log p(t, s) by definition, `[T, S]`, with all t and s."""
    t, s = all_supports(filters, length)
    rows = torch.tensor([[chain_probability(r, p[0], p[1]) for r in m] for m in s], dtype=F64)  # [S, F]
    off = (s.sum(-1) == 0).to(F64)
    inside = torch.where(t[:, None] > 0, rows, off).prod(-1)
    outer = torch.tensor([chain_probability(row, p[2], p[3]) for row in t], dtype=F64)
    return (inside * outer[:, None]).log(), t, s


TRANSITIONS = (0.15, 0.25, 0.3, 0.2)


@pytest.mark.parametrize(("filters", "length", "scale"), [(3, 3, 1.0), (3, 3, 10.0), (1, 4, 2.0), (4, 2, 3.0)])
def test_two_level_chain_is_exact(rng: torch.Generator, filters: int, length: int, scale: float) -> None:
    evidence = torch.randn(filters, length, generator=rng, dtype=F64) * scale
    prior, t, s = two_level_joint(filters, length, TRANSITIONS)
    joint = prior + (s * evidence).sum((-1, -2))
    weight = joint.flatten().softmax(0).reshape(joint.shape)

    messages = two_level_messages(evidence, *TRANSITIONS)
    assert messages.filters is not None
    torch.testing.assert_close(messages.log_normaliser, joint.flatten().logsumexp(0), atol=1e-10, rtol=0)
    torch.testing.assert_close(messages.filters.sigmoid(), weight.sum(1) @ t, atol=1e-10, rtol=0)
    any_on = weight.sum(0) @ s.any(-1).to(F64)
    torch.testing.assert_close(messages.live.sigmoid(), any_on, atol=1e-10, rtol=0)
    marginals = torch.einsum("s,sfk->fk", weight.sum(0), s)
    torch.testing.assert_close(messages.posterior.sigmoid(), marginals, atol=1e-10, rtol=0)
    for f, k in itertools.product(range(filters), range(length)):
        others = evidence.clone()
        others[f, k] = 0
        w = (prior + (s * others).sum((-1, -2))).flatten().softmax(0).reshape(joint.shape)
        assert messages.extrinsic[f, k].sigmoid().item() == pytest.approx(float(w.sum(0) @ s[:, f, k]), abs=1e-10)

    chain = TwoLevelChain(*(torch.tensor(p, dtype=F64) for p in TRANSITIONS), filters, length)
    torch.testing.assert_close(chain.log_prob(s), prior.logsumexp(0), atol=1e-10, rtol=0)
    marginal = torch.einsum("s,sfk->fk", prior.exp().sum(0), s)
    torch.testing.assert_close(chain.mean, marginal, atol=1e-10, rtol=0)


def test_two_level_em_step_matches_enumeration(rng: torch.Generator) -> None:
    evidence = torch.randn(3, 3, generator=rng, dtype=F64) * 2
    prior, t, s = two_level_joint(3, 3, TRANSITIONS)
    weight = (prior + (s * evidence).sum((-1, -2))).flatten().softmax(0).reshape(prior.shape)
    live = weight[:, :, None] * t[:, None, :]  # [T, S, F]
    now, after = s[..., :-1], s[..., 1:]

    def inner(pairs: Tensor) -> float:
        return float((live * pairs.sum(-1)).sum())

    over = weight.sum(1)
    expected = (
        inner((1 - now) * after) / inner(1 - now),
        inner(now * (1 - after)) / inner(now),
        float(over @ ((1 - t[:, :-1]) * t[:, 1:]).sum(1)) / float(over @ (1 - t[:, :-1]).sum(1)),
        float(over @ (t[:, :-1] * (1 - t[:, 1:])).sum(1)) / float(over @ t[:, :-1].sum(1)),
    )
    assert two_level_messages(evidence, *TRANSITIONS).learned() == pytest.approx(expected, abs=1e-10)


def test_em_finds_the_transitions_of_planted_chains() -> None:
    torch.manual_seed(1)
    truth = (0.08, 0.15, 0.2, 0.1)
    support = TwoLevelChain(*truth, filters=120, length=120).sample()
    seen = torch.where(support > 0, 1.5, -1.5) + torch.randn(support.shape)
    evidence = 3 * seen  # log N(x; 1.5, 1) − log N(x; −1.5, 1)
    guess = (0.3, 0.3, 0.3, 0.3)
    for _ in range(30):
        guess = two_level_messages(evidence, *guess).learned()
    assert guess[:2] == pytest.approx(truth[:2], abs=0.01)
    assert guess[2:] == pytest.approx(truth[2:], abs=0.1)  # only 119 moves are seen


def test_two_level_draws_are_clustered_and_have_the_right_share() -> None:
    torch.manual_seed(0)
    chain = TwoLevelChain(0.05, 0.1, 0.1, 0.2, filters=40, length=200)
    filters, support = chain.sample_levels((20,))
    assert support.shape == (20, 40, 200) and filters.shape == (20, 40)
    assert (support[filters == 0] == 0).all()
    assert support.mean().item() == pytest.approx(1 / 9, abs=0.03)
    mean, independent = run_length(support)
    assert mean == pytest.approx(10, rel=0.1)  # geometric with p10 = 0.1
    assert mean > 5 * independent
    assert chain.expand([2]).sample((3,)).shape == (3, 2, 40, 200)


def test_soft_values_are_rounded() -> None:
    chain = TwoLevelChain(0.1, 0.1, 0.2, 0.2, filters=2, length=3, validate_args=False)
    soft = torch.tensor([[0.9, 0.6, 0.1], [0.0, 0.4, 0.2]])
    assert chain.log_prob(soft) == chain.log_prob(soft.round())


def lattice(p: tuple[float, ...], rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """log of the unnormalised prior of the crossing form and all supports."""
    s = sequences(rows * columns).reshape(-1, rows, columns)
    odds = ((p[0] / p[1]) * (p[2] / p[3])) ** 0.5
    share = odds / (1 + odds)
    total = torch.tensor(
        [
            sum(torch.tensor(chain_probability(r, p[0], p[1])).log().item() for r in m)
            + sum(torch.tensor(chain_probability(c, p[2], p[3])).log().item() for c in m.T)
            for m in s
        ],
        dtype=F64,
    )
    single = s * torch.tensor(share, dtype=F64).log() + (1 - s) * torch.tensor(1 - share, dtype=F64).log()
    return total - single.sum((-1, -2)), s


@pytest.mark.parametrize(
    ("p", "worst", "mean", "normaliser"),
    [((0.3, 0.3, 0.3, 0.3), 0.03, 0.005, 0.15), ((0.2, 0.2, 0.25, 0.25), 0.15, 0.02, 0.6)],
)
def test_crossing_messages_on_small_lattices(
    rng: torch.Generator, p: tuple[float, ...], worst: float, mean: float, normaliser: float
) -> None:
    """Loopy messages against enumeration: the error that the docstring states, by coupling."""
    prior, s = lattice(p, 3, 3)
    evidence = torch.randn(100, 3, 3, generator=rng, dtype=F64) * 2
    joint = prior + torch.einsum("sfk,nfk->ns", s, evidence)
    exact = torch.einsum("ns,sfk->nfk", joint.softmax(-1), s)
    messages = crossing_messages(evidence, *p)
    error = (messages.posterior.sigmoid() - exact).abs()
    assert error.max() < worst
    assert error.mean() < mean
    truth = joint.logsumexp(-1) - prior.logsumexp(0)
    assert (messages.log_normaliser - truth).abs().max() < normaliser
    without_chains = (evidence.sigmoid() - exact).abs().mean()
    assert error.mean() < 0.2 * without_chains


def test_crossing_messages_are_exact_without_loops(rng: torch.Generator) -> None:
    evidence = torch.randn(1, 5, generator=rng, dtype=F64)
    p = (0.2, 0.3, 0.2, 0.3)
    prior, s = lattice(p, 1, 5)
    joint = prior + (s * evidence).sum((-1, -2))
    messages = crossing_messages(evidence, *p)
    torch.testing.assert_close(
        messages.posterior.sigmoid(), torch.einsum("s,sfk->fk", joint.softmax(0), s), atol=1e-6, rtol=0
    )
    assert messages.log_normaliser.item() == pytest.approx(float(joint.logsumexp(0) - prior.logsumexp(0)), abs=1e-6)


def test_crossing_draws_follow_the_lattice() -> None:
    torch.manual_seed(0)
    p = (0.2, 0.3, 0.25, 0.25)
    prior, s = lattice(p, 2, 3)
    chain = CrossingChains(*p, 2, 3)
    draws = chain.sample((20_000,))
    exact = torch.einsum("s,sfk->fk", prior.softmax(0), s)
    torch.testing.assert_close(draws.double().mean(0), exact, atol=0.02, rtol=0)
    pair = (draws[:, :, :-1] * draws[:, :, 1:]).double().mean(0)
    expected = torch.einsum("s,sfk->fk", prior.softmax(0), s[..., :-1] * s[..., 1:])
    torch.testing.assert_close(pair, expected, atol=0.02, rtol=0)
    got = chain.log_prob(s.float()).double()
    torch.testing.assert_close(got - got[0], prior - prior[0], atol=1e-4, rtol=0)


def test_run_length_counts_runs() -> None:
    assert run_length(torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]]))[0] == 2.0
    assert run_length(torch.zeros(2, 3)) == (0.0, 0.0)
    torch.manual_seed(0)
    mean, independent = run_length(torch.rand(400, 200) < 0.3)
    assert mean == pytest.approx(independent, rel=0.02)
