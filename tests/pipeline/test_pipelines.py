"""The common pipeline and its schedule: what is spent where, and what is cut."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.channels import PruningPlan
from pyrobnn.data import Data
from pyrobnn.errors import ConfigError
from pyrobnn.inference.recipe import batch_size_for, kind_of
from pyrobnn.methods.registry import METHODS, get_method
from pyrobnn.pipeline.choices import THINNEST, group_cut
from pyrobnn.pipeline.config import CompressionConfig
from pyrobnn.pipeline.schedule import Epochs, share_out
from pyrobnn.pipeline.stages import reset
from pyrobnn.pipeline.store import RunStore
from pyrobnn.report.report import steady
from pyrobnn.summary.saliency import FREE_NATS

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short
SETTINGS: dict[str, Any] = {"epochs": 5, "precision": "fp32", "seed": 2, "progress": False}


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(256), valid=full.valid.take(60), test=full.test.take(120))


def small() -> nn.Module:
    return pb.nets.build("small_cnn", in_channels=1, image_size=8)


# Schedule


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epochs", [2, 3, 5, 12, 25, 100])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("target", [{"target_macs": 0.5}, {"max_drop": 1.0}, {}])
def test_epochs_are_shared_out(method: str, epochs: int, trained: bool, target: dict[str, float], data: Data) -> None:
    recipe, config = METHODS[method].recipes.small, CompressionConfig(epochs=epochs, **target)
    least = 1 + (not trained) + (recipe.infer_share > 0 or "max_drop" in target)
    if epochs < least:
        with pytest.raises(
            ConfigError,
            match=r"--epochs must be at least 3 here \(one each to train the dense network, infer and tune\), got 2",
        ):
            share_out(recipe, config, data, small(), trained=trained)
        return
    share = share_out(recipe, config, data, small(), trained=trained)
    assert share.dense == 0 if trained else share.dense >= 1
    assert share.tune >= 1 and len(share.infer) >= 1
    # Where nothing is inferred, rounds have epochs only where each has to show that its cut recovers.
    assert min(share.infer) >= (METHODS[method].recipes.small.infer_share > 0)
    assert share.total == epochs  # neither exceeded nor left
    assert share.retune == 0 or "max_drop" in target
    assert Epochs.of(share.data()) == share


def test_the_search_for_the_smallest_has_epochs_of_its_own(data: Data) -> None:
    recipe = METHODS["ard"].recipes.small
    plain = share_out(recipe, CompressionConfig(target_macs=0.5), data, small(), trained=False)
    judged = share_out(recipe, CompressionConfig(max_drop=1.0), data, small(), trained=False)
    assert judged.total == 2 * plain.total
    assert (judged.dense, judged.retune) == (plain.dense, judged.total - judged.dense - sum(judged.infer) - judged.tune)
    assert judged.retune > plain.total


def test_batch_sizes() -> None:
    assert [batch_size_for(n) for n in (50, 1000, 2000, 4000, 50000)] == [16, 32, 64, 128, 128]
    assert kind_of(small()) == "small" and kind_of(pb.nets.build("resnet20")) == "deep"


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5, 8, 20])
def test_few_rounds_cut_deeper_each(rounds: int) -> None:
    left = (1 - group_cut(rounds)) ** rounds
    assert left == pytest.approx(THINNEST) if rounds <= 5 else left < THINNEST
    assert group_cut(rounds) >= group_cut(rounds + 1) >= 0.5


def test_minutes_become_epochs(data: Data) -> None:
    recipe = get_method("gaussian").recipes.small
    short = share_out(recipe, CompressionConfig(minutes=0.02), data, small(), trained=True)
    long = share_out(recipe, CompressionConfig(minutes=2.0), data, small(), trained=True)
    assert 2 <= short.total < long.total


# Registry and requests


def test_near_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'gausian': did you mean gaussian"):
        get_method("gausian")
    with pytest.raises(ConfigError, match="known are"):
        get_method("??")
    assert all(get_method(name).name == name for name in METHODS)


def test_reset_gives_fresh_weights_and_keeps_the_rng() -> None:
    net = small()
    torch.manual_seed(5)
    rng = torch.get_rng_state()
    first = {n: p.clone() for n, p in reset(net, 1).named_parameters()}
    again = {n: p.clone() for n, p in reset(net, 1).named_parameters()}
    other = dict(reset(net, 2).named_parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["conv2.weight"], other["conv2.weight"])


# Every method, end to end


class Killed(BaseException):
    """What nobody catches."""


RELATED = (  # to another one, in what a run does
    "ss-ig", "ss-ghs", "ss-edge", "rbp-spike", "hbfp-bayes", "bn-scale", "fpgm", "self-compression-snr",
)  # fmt: skip


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] * (m in RELATED)) for m in METHODS])
def test_every_method_meets_a_budget_and_resumes(method: str, data: Data, tmp_path: Any) -> None:
    whole = pb.compress("small_cnn", data, method, target_macs=0.4, **SETTINGS)
    left = whole.report["compact"]["macs"] / whole.report["dense"]["macs"]
    assert left <= 0.4
    if left <= 0.3:  # below what was asked only by channels that cost nothing
        kept = PruningPlan(
            {
                name: (channel.kept | (channel.nats < FREE_NATS)).nonzero().flatten().tolist()
                for name, channel in whole.posterior.channels.items()
            },
            whole.plan.channels,
        )
        table = pb.channel_groups(small(), data.example)
        assert table.after(kept).cost(None).macs > 0.3 * whole.report["dense"]["macs"]
    assert whole.report["method"] == method and whole.report["compact"]["accuracy"] > 0.2
    assert set(whole.posterior.channels) == set(whole.plan.keep)
    for name, channel in whole.posterior.channels.items():
        assert channel.kept.nonzero().flatten().tolist() == whole.plan.keep[name]
        assert bool(torch.isfinite(channel.snr).all())
    assert whole.compact(data.example).shape == (2, 10)

    original, count = RunStore._save, 0

    def save(self: RunStore) -> None:
        nonlocal count
        original(self)
        count += 1
        if count == 5:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunStore, "_save", save)
        pb.compress("small_cnn", data, method, target_macs=0.4, out=tmp_path / "run", **SETTINGS)
    again = pb.compress("small_cnn", data, method, target_macs=0.4, out=tmp_path / "run", resume=True, **SETTINGS)
    assert steady(again.report) == steady(whole.report)


def test_rounds_go_down_to_the_budget(data: Data) -> None:
    result = pb.compress("small_cnn", data, "gaussian", target_macs=0.2, **{**SETTINGS, "epochs": 8})
    macs = [entry["macs"] for entry in result.report["rounds"]]
    dense = result.report["dense"]["macs"]
    assert len(macs) > 1 and macs == sorted(macs, reverse=True)
    steps = len(macs)
    for number, value in enumerate(macs):  # geometric steps
        share = 0.2 ** ((number + 1) / steps)
        assert value <= share * dense + 1 and value > (share - 0.08) * dense
    assert macs[-1] == result.report["compact"]["macs"]
    assert result.report["rounds"][-1]["widths"] == result.report["compact"]["widths"]
    assert [entry["round"] for entry in result.report["rounds"]] == list(range(1, steps + 1))


def test_a_drop_that_allows_nothing(data: Data) -> None:
    """With no accuracy to give away the answer may be the dense net, but never one below the floor by choice."""
    result = pb.compress("small_cnn", data, "gaussian", max_drop=0.0, **{**SETTINGS, "epochs": 12})
    assert result.report["epochs"] <= 12
    assert math.isfinite(result.report["compact"]["accuracy"])
    assert result.report["compact"]["macs"] <= result.report["dense"]["macs"]
    for name, channel in result.posterior.channels.items():
        assert channel.kept.nonzero().flatten().tolist() == result.plan.keep[name]


@pytest.mark.parametrize("drop", [0.0, 60.0])
def test_recursion_keeps_to_a_drop(drop: float, data: Data) -> None:
    """Cutting layer by layer listens to validation accuracy, and what is returned has held the drop."""
    result = pb.compress("small_cnn", data, "rbp", max_drop=drop, **{**SETTINGS, "epochs": 14})
    assert result.report["rule"] == "max-drop" and result.report["epochs"] <= 14
    share = result.report["compact"]["macs"] / result.report["dense"]["macs"]
    assert result.report["target"]["met"] or share == 1
    assert share < 0.5 or not drop


def test_the_rule_alone(data: Data) -> None:
    result = pb.compress("small_cnn", data, "gaussian", **SETTINGS)
    assert result.report["rule"] == METHODS["gaussian"].rule
    for name, channel in result.posterior.channels.items():
        assert channel.evidence is not None
        kept, cut = channel.evidence[channel.kept], channel.evidence[~channel.kept]
        assert len(kept) == 1 or float(kept.min()) >= 0  # nothing is left whose removal would raise the evidence
        assert not len(cut) or float(cut.max()) <= 0 or len(result.report["rounds"]) > 1
        assert len(result.plan.keep[name]) >= 1
