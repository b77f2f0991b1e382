"""Metrics against brute force, torchmetrics and cases worked out by hand."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pyrobnn.errors import ConfigError, DataError, NumericalError
from pyrobnn.metrics import evaluate as m


class FakeSplit:
    """The part of `pyrobnn.data.Split` that the metrics use."""

    def __init__(self, images: Tensor, labels: Tensor, std: tuple[float, ...] = (0.5,)) -> None:
        self.images, self.labels, self.std = images, labels, torch.tensor(std)

    def batches(self, batch_size: int, *, device: str, channels_last: bool) -> Iterator[tuple[Tensor, Tensor]]:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for start in range(0, len(self.labels), batch_size):
            part = slice(start, start + batch_size)
            yield self.images[part].to(device, memory_format=layout), self.labels[part].to(device)


def logits_and_labels(n: int = 997, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    labels[::2] = logits[::2].argmax(1)
    return logits, labels


def test_tally_equals_direct_formulas_in_any_batching() -> None:
    logits, labels = logits_and_labels()
    tally = m.Tally()
    for part in torch.arange(len(labels)).split(101):
        tally.add_logits(logits[part], labels[part])
    got = tally.metrics()
    p = logits.double().softmax(1)
    onehot = nn.functional.one_hot(labels, p.shape[1])
    assert got.accuracy == (p.argmax(1) == labels).double().mean().item()
    assert got.nll == pytest.approx(-(p.log() * onehot).sum(1).mean().item(), rel=1e-6)
    assert got.brier == pytest.approx((p - onehot).square().sum(1).mean().item(), rel=1e-6)


def test_ece_by_loops_over_bins() -> None:
    logits, labels = logits_and_labels(seed=1)
    tally = m.Tally()
    tally.add_logits(logits, labels)
    p = logits.softmax(1)
    total = 0.0
    for b in range(15):
        inside = [i for i in range(len(p)) if b / 15 <= p[i].max() < (b + 1) / 15]
        if inside:
            confidence = sum(p[i].max().item() for i in inside) / len(inside)
            right = sum(int(p[i].argmax() == labels[i]) for i in inside) / len(inside)
            total += len(inside) / len(p) * abs(confidence - right)
    assert tally.metrics().ece == pytest.approx(total, abs=1e-6)
    assert tally.reliability().count.sum() == len(labels)
    assert total > 0.05  # the example is badly calibrated on purpose: a metric stuck at 0 fails


def test_torchmetrics_agrees_without_warnings() -> None:
    from torchmetrics.functional.classification import (
        binary_auroc,
        multiclass_accuracy,
        multiclass_calibration_error,
    )

    logits, labels = logits_and_labels(seed=2)
    tally = m.Tally()
    tally.add_logits(logits, labels)
    got, k = tally.metrics(), logits.shape[1]
    assert got.accuracy == pytest.approx(multiclass_accuracy(logits, labels, k, average="micro").item())
    theirs = multiclass_calibration_error(logits.softmax(1), labels, k, n_bins=15)
    assert got.ece == pytest.approx(theirs.item(), abs=1e-6)
    scores = (torch.rand(400, generator=torch.Generator().manual_seed(3)) * 50).round() / 50  # with ties
    side = torch.arange(400) % 3 == 0
    scores[side] = (scores[side] + 0.1).clamp(max=1)
    expected = binary_auroc(scores, side.long()).item()
    assert m.ood_auroc(scores[~side], scores[side]) == pytest.approx(expected, abs=1e-6)


def test_confidence_of_exactly_one_lands_in_the_last_bin() -> None:
    tally = m.Tally()
    tally.add_probs(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    assert tally.reliability().count[-1] == 2
    got = tally.metrics()
    assert got.ece == 0.5
    assert got.brier == 1.0  # (0 + 2) / 2
    assert got.nll == pytest.approx(-math.log(torch.finfo(torch.float32).tiny) / 2)


def test_bins_are_closed_below() -> None:
    tally = m.Tally(bins=5)
    tally.add_probs(torch.tensor([[0.6, 0.4]]), torch.tensor([0]))
    assert tally.reliability().count.tolist() == [0, 0, 0, 1, 0]


def test_tally_refuses_nonsense() -> None:
    tally = m.Tally()
    with pytest.raises(NumericalError, match="finite logits"):
        tally.add_logits(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))
    with pytest.raises(DataError, match="as many labels"):
        tally.add_logits(torch.zeros(2, 3), torch.tensor([0]))
    with pytest.raises(DataError, match="at least one example"):
        tally.metrics()
    with pytest.raises(ConfigError, match="calibration bin"):
        m.Tally(bins=0)


def test_predictive_accumulator_equals_the_stack_of_draws() -> None:
    generator = torch.Generator().manual_seed(4)
    draws = 3 * torch.randn(40, 25, 6, generator=generator)
    labels = torch.randint(0, 6, (25,), generator=generator)
    acc = m.PredictiveAccumulator()
    for logits in draws:
        acc.add_logits(logits)
    p = draws.double().softmax(-1)
    mean = p.mean(0)
    total = -(mean * mean.log()).sum(-1)
    aleatoric = -(p * p.log()).sum(-1).mean(0)
    assert acc.draws == 40
    torch.testing.assert_close(acc.probs.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(acc.predictive_entropy.double(), total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(acc.expected_entropy.double(), aleatoric, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(acc.mutual_information.double(), total - aleatoric, rtol=1e-4, atol=1e-5)
    got = acc.metrics(labels)
    assert got.nll == pytest.approx(-mean[torch.arange(25), labels].log().mean().item(), rel=1e-5)


def test_predictive_memory_is_flat_in_the_number_of_draws() -> None:
    def held(acc: m.PredictiveAccumulator) -> int:
        return sum(v.untyped_storage().nbytes() for v in vars(acc).values() if isinstance(v, Tensor))

    acc, sizes = m.PredictiveAccumulator(), []
    for _ in range(50):
        acc.add_logits(torch.randn(10, 3, requires_grad=True))
        sizes.append(held(acc))
    assert set(sizes) == {10 * 3 * 4 + 10 * 4}
    assert not acc.probs.requires_grad


def test_identical_draws_have_no_mutual_information() -> None:
    acc = m.PredictiveAccumulator()
    for _ in range(7):
        acc.add_logits(logits_and_labels()[0])
    assert float(acc.mutual_information.max()) < 1e-5
    assert float(acc.mutual_information.min()) >= 0


def test_accumulator_refuses_other_examples_and_no_draws() -> None:
    acc = m.PredictiveAccumulator()
    with pytest.raises(DataError, match="at least one posterior draw"):
        _ = acc.probs
    acc.add_logits(torch.zeros(2, 3))
    with pytest.raises(DataError, match="earlier draws"):
        acc.add_logits(torch.zeros(3, 3))
    with pytest.raises(NumericalError):
        acc.add_logits(torch.full((2, 3), float("inf")))


def test_ood_auroc_by_counting_pairs() -> None:
    generator = torch.Generator().manual_seed(5)
    known = torch.randint(0, 9, (60,), generator=generator).float()
    unknown = torch.randint(3, 12, (45,), generator=generator).float()
    wins = sum((u > k) + 0.5 * (u == k) for k in known.tolist() for u in unknown.tolist())
    assert m.ood_auroc(known, unknown) == pytest.approx(wins / (60 * 45), abs=1e-12)
    assert m.ood_auroc(known, known) == pytest.approx(0.5)
    with pytest.raises(DataError, match="both sides"):
        m.ood_auroc(known, known[:0])
    with pytest.raises(NumericalError):
        m.ood_auroc(known, torch.tensor([float("nan")]))


def test_selective_prediction_is_the_mean_over_orders_of_ties() -> None:
    uncertainty = torch.tensor([0.3, 0.1, 0.3, 0.3, 0.7])
    correct = torch.tensor([True, True, False, True, False])
    curve = m.selective_prediction(uncertainty, correct)
    # among the three tied examples one is wrong: expected errors 1/3 each
    expected = torch.tensor([0, (1 / 3) / 2, (2 / 3) / 3, 1 / 4, 2 / 5], dtype=torch.float64)
    torch.testing.assert_close(curve.risk, expected)
    torch.testing.assert_close(curve.coverage, torch.arange(1, 6) / 5.0, check_dtype=False)
    assert curve.aurc == pytest.approx(expected.mean().item())
    flipped = m.selective_prediction(uncertainty.flip(0), correct.flip(0))
    torch.testing.assert_close(flipped.risk, curve.risk)
    with pytest.raises(DataError):
        m.selective_prediction(uncertainty, correct[:3])


def test_agreement() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [0.0, 5.0]])
    b = torch.tensor([[9.0, 8.0], [7.0, 1.0], [3.0, 2.0], [0.0, 0.1]])
    assert m.agreement(a, b) == 0.75
    with pytest.raises(DataError):
        m.agreement(a, b[:2])


def small_net() -> nn.Module:
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def test_evaluate_leaves_the_net_alone_and_does_not_depend_on_batches() -> None:
    net = small_net().train()
    net[1].eval()  # a module frozen by the user keeps its own mode
    before = {k: v.clone() for k, v in net.state_dict().items()}
    split = FakeSplit(torch.randn(50, 1, 8, 8), torch.randint(0, 3, (50,)))
    rng = torch.get_rng_state()
    one, many = m.evaluate(net, split), m.evaluate(net, split, batch_size=7, channels_last=True)
    assert torch.equal(rng, torch.get_rng_state())
    for key, value in one.to_dict().items():
        assert many.to_dict()[key] == pytest.approx(value, rel=1e-5)
    assert net.training and net[3].training and not net[1].training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net.eval()
    with torch.no_grad():
        direct = net(split.images)
    logits, labels = m.predict_logits(net, split, batch_size=11)
    torch.testing.assert_close(logits, direct)
    assert torch.equal(labels, split.labels)
    assert one.accuracy == (direct.argmax(1) == split.labels).double().mean().item()


def test_gradients_are_still_on_between_batches() -> None:
    split = FakeSplit(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))
    for logits, _ in m.iter_logits(small_net(), split, batch_size=2):
        assert torch.is_grad_enabled() and not logits.requires_grad


def test_evaluate_in_bf16_is_near_fp32_and_refuses_other_names() -> None:
    net, split = small_net(), FakeSplit(torch.randn(40, 1, 8, 8), torch.randint(0, 3, (40,)))
    single, half = m.evaluate(net, split), m.evaluate(net, split, precision="bf16")
    assert half.nll == pytest.approx(single.nll, rel=0.02)
    assert half.nll != single.nll  # autocast really ran
    with pytest.raises(ConfigError, match="fp16"):
        m.evaluate(net, split, precision="fp16")


class Sign(nn.Module):
    """Says class 1 where the first pixel is positive."""

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0, 0, 0]
        return torch.stack([-first, first], 1)


def test_noise_accuracy_has_the_stated_unit() -> None:
    # The pixel stands at +1 in normalised units with std 0.5, so 0.5 on the pixel scale.
    n = 20_000
    split = FakeSplit(torch.ones(n, 1, 1, 1), torch.ones(n, dtype=torch.long), std=(0.5,))
    got = m.noise_accuracy(Sign(), split, sigmas=(0.0, 0.25, 1.0), seed=7)
    for sigma, z in ((0.25, 2.0), (1.0, 0.5)):  # P(0.5 + sigma e > 0) = Phi(0.5 / sigma)
        p = 0.5 * (1 + math.erf(z / math.sqrt(2)))
        assert got[sigma] == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))
    assert got[0.0] == 1.0
    assert got == m.noise_accuracy(Sign(), split, sigmas=(0.0, 0.25, 1.0), seed=7)
    assert got != m.noise_accuracy(Sign(), split, sigmas=(0.0, 0.25, 1.0), seed=8)


class Sleeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.shapes = 0, set[tuple[int, ...]]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.shapes.add(tuple(x.shape))
        time.sleep(0.2 if self.calls == 1 else 0.002)  # a slow first call must not count
        return x


def test_latency_is_the_median_after_warming_up() -> None:
    net = Sleeper()
    assert 2.0 <= m.latency_ms(net, torch.zeros(4, 1, 2, 2), repeats=1, warmup=1) < 90
    assert 2.0 <= m.latency_ms(net, torch.zeros(4, 1, 2, 2), repeats=5, warmup=0) < 90
    assert net.calls == 7 and net.shapes == {(1, 1, 2, 2)}
    with pytest.raises(ConfigError, match="batch=9"):
        m.latency_ms(net, torch.zeros(4, 1, 2, 2), batch=9)


def test_module_bytes_counts_buffers_and_shared_tensors_once() -> None:
    norm = nn.BatchNorm2d(3)
    assert m.module_bytes(norm) == 4 * 3 * 4 + 8  # gamma, beta, mean, variance, and an int64 counter
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    assert m.module_bytes(nn.Sequential(a, b)) == (9 + 3 + 3) * 4


class TwoLogits(nn.Module):
    """Says with two logits what a network with one says."""

    def __init__(self, one: nn.Module) -> None:
        super().__init__()
        self.one = one

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x)
        return torch.cat([torch.zeros_like(z), z], 1)


def test_one_logit_under_noise_and_over_draws_is_two() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    two, images = TwoLogits(one), torch.randn(60, 1, 4, 4)
    split = FakeSplit(images, (one(images)[:, 0] > 0.1).long())
    found, expected = (m.noise_accuracy(net, split, [0.0, 0.3], batch_size=7, device="cpu") for net in (one, two))
    assert found == expected and found[0.0] > 0.8 and found[0.3] != found[0.0]
    draws = [m.PredictiveAccumulator() for _ in range(2)]
    for net, accumulator in zip((one, two), draws, strict=True):
        accumulator.add_logits(net(images))
    assert torch.equal(draws[0].probs, draws[1].probs) and draws[0].probs.shape == (60, 2)
