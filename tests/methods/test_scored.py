"""Methods that judge channels by scores: the controls, `bayes-l1` and `hbfp`, and their road without a target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import pyrobnn as pb
from pyrobnn.criteria.scores import l1_norms, moments_of
from pyrobnn.data import Data
from pyrobnn.errors import ConfigError
from pyrobnn.methods.bayes_l1 import bayes_l1
from pyrobnn.methods.controls import CONTROLS
from pyrobnn.methods.hbfp import hbfp
from pyrobnn.methods.registry import METHODS
from pyrobnn.pipeline import acceptance, pipelines
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.state import State

pytestmark = pytest.mark.filterwarnings(
    "ignore:nothing was cut", "ignore:no target was given", "ignore:the target was missed"
)  # by runs this short
SETTINGS: dict[str, Any] = {"precision": "fp32", "progress": False, "seed": 1}


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(256), valid=full.valid.take(100), test=full.test.take(100))


# Controls


def test_controls_spend_the_epochs_that_the_others_spend(data: Data) -> None:
    plain = pb.compress("small_cnn", data, METHODS["l1"], target_macs=0.5, epochs=6, **SETTINGS).report
    bayes = pb.compress("small_cnn", data, METHODS["bayes-l1"], target_macs=0.5, epochs=6, **SETTINGS).report
    assert plain["epochs_by_phase"] == bayes["epochs_by_phase"]
    assert len(plain["rounds"]) == len(bayes["rounds"])
    assert plain["dense"]["accuracy"] == bayes["dense"]["accuracy"]  # the same seed, the same dense net


def test_the_cut_is_read_from_the_score(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the posterior at the decision is the criterion on the net of that moment."""
    seen: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
    original = pipelines.choose

    def choose(context: Context, state: State, number: int) -> pb.PruningPlan:
        assert state.latest is not None
        norms = l1_norms(context.table_of(state.plan), moments_of(state.net))
        seen.append(({name: c.snr for name, c in state.latest.channels.items()}, norms))
        return original(context, state, number)

    monkeypatch.setattr(pipelines, "choose", choose)
    result = pb.compress("small_cnn", data, "l1", target_macs=0.4, epochs=12, **SETTINGS)
    assert len(seen) >= 2
    for scores, norms in seen:
        assert scores.keys() == norms.keys()
        assert all(torch.allclose(scores[name], norms[name], rtol=1e-5) for name in scores)
    assert {c.statistic for c in result.posterior.channels.values()} == {"score"}


def test_random_is_random_by_seed(data: Data) -> None:
    def keep(seed: int) -> dict[str, list[int]]:
        settings = {**SETTINGS, "seed": seed}
        return pb.compress("small_cnn", data, "random", target_macs=0.5, epochs=3, **settings).plan.keep

    first = keep(1)
    assert keep(1) == first and keep(2) != first


def test_bn_scale_leaves_groups_without_a_norm_whole(data: Data) -> None:
    result = pb.compress("small_cnn", data, "bn-scale", target_macs=0.5, epochs=3, **SETTINGS)
    assert "fc1" not in result.plan.keep and "BatchNorm" in result.report["refused"]["fc1"]
    assert result.compact.fc1.out_features == 64
    assert result.compact.conv2.out_channels < 32


def test_bn_scale_is_refused_before_training_where_there_is_no_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrobnn.pipeline.context.fit", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ConfigError, match="bn-scale reads the scales of BatchNorm"):
        pb.compress("lenet300", "digits", "bn-scale", target_macs=0.5, epochs=3, **SETTINGS)


@pytest.mark.parametrize("method", [m.name for m in CONTROLS])
def test_controls_have_no_posterior_to_keep(method: str, data: Data) -> None:
    result = pb.compress("small_cnn", data, method, target_macs=0.6, epochs=3, **SETTINGS)
    assert result.posterior.sites == {} and result.posterior.draws == {}


# bayes-l1


@pytest.mark.parametrize("prior", ["capped-l1", "gaussian", "mixture"])
def test_bayes_l1_with_each_prior(prior: str, data: Data) -> None:
    method = bayes_l1(prior, expected=prior != "gaussian", name=f"bayes-l1 ({prior})")
    result = pb.compress("small_cnn", data, method, target_macs=0.5, epochs=4, **SETTINGS)
    assert result.report["method"] == f"bayes-l1 ({prior})" and result.report["compact"]["accuracy"] > 0.3
    assert result.posterior.sites["fc1.weight"].scale.min() > 0


def test_bayes_l1_refuses_other_priors() -> None:
    with pytest.raises(ConfigError, match="capped-l1, gaussian, mixture"):
        bayes_l1("horseshoe")
    with pytest.raises(ConfigError, match="mix"):
        bayes_l1(mix=1.5)


# hbfp


@pytest.mark.parametrize("method", [METHODS["hbfp"], hbfp(bayesian=True, distance="kl")])
def test_histories_are_in_the_run_directory(method: Any, data: Data, tmp_path: Any) -> None:
    out = tmp_path / "run"
    result = pb.compress("small_cnn", data, method, target_macs=0.4, epochs=6, out=out, **SETTINGS)
    rounds = result.report["rounds"]
    assert len(result.posterior.trajectories) == len(rounds) >= 2
    saved = pb.load_run(out).posterior.trajectories
    for number, entry in enumerate(saved):
        widths = rounds[number - 1]["widths"] if number else {"conv1": 16, "conv2": 32, "fc1": 64}
        for name, parts in entry.items():
            assert torch.equal(parts["norms"], result.posterior.trajectories[number][name]["norms"])
            assert parts["norms"].shape == (17, widths[name]) and len(parts["units"]) == widths[name]
            assert parts["pairs"].shape == (widths[name] - 1, 2)
    # Those that went are the first of their round's order: nobody outlives a closer pair.
    cuts = 0
    for name, parts in saved[0].items():
        went = set(range(len(parts["units"]))) - {int(u) for u in saved[1][name]["units"]}
        assert went == set(parts["pairs"][: len(went), 0].tolist())
        cuts += len(went)
    assert cuts > 0
    assert "Histories of filters" in (out / "report.html").read_text()


def test_which_filter_of_a_pair_goes(data: Data) -> None:
    def mean_norm_gone(drop: str) -> float:
        method = hbfp(drop=drop, name=drop)
        entry = pb.compress("small_cnn", data, method, target_macs=0.5, epochs=4, **SETTINGS).posterior.trajectories[0]
        norms, pairs = entry["fc1"]["norms"].sum(0), entry["fc1"]["pairs"]
        return float((norms[pairs[:, 0]] - norms[pairs[:, 1]]).mean())

    assert mean_norm_gone("lower") < 0 < mean_norm_gone("higher")


# Without a target


@pytest.mark.parametrize("method", ["l1", "bayes-l1", "hbfp"])
def test_without_a_target_every_round_cuts_a_fifth(method: str, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "floor", lambda base, drop, slack=0.0: 0.0)
    result = pb.compress("small_cnn", data, method, epochs=13, **SETTINGS)
    widths = [entry["widths"] for entry in result.report["rounds"]]
    assert len(widths) == len([w for w in widths if w["fc1"] < 64]) >= 2
    assert widths[0] == {"conv1": 13, "conv2": 26, "fc1": 52} and widths[1] == {"conv1": 11, "conv2": 21, "fc1": 42}


def test_the_loop_stops_by_itself_and_takes_the_last_cut_back(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the accuracy of the third network called lost, the second one is tuned."""
    judged: list[bool] = []

    def recovered(*figures: Any) -> bool:  # the first round is not judged
        judged.append(len(judged) != 1)
        return judged[-1]

    monkeypatch.setattr(acceptance, "floor", lambda base, drop, slack=0.0: 0.0)
    monkeypatch.setattr(acceptance, "recovered", recovered)
    result = pb.compress("small_cnn", data, "l1", epochs=20, **SETTINGS)
    assert [entry["round"] for entry in result.report["rounds"]] == [1]
    assert result.plan.widths() == {"conv1": 13, "conv2": 26, "fc1": 52}
    for name, channel in result.posterior.channels.items():
        assert channel.kept.nonzero().flatten().tolist() == result.plan.keep[name]
    assert result.report["epochs"] <= 20


def test_an_automatic_stop_needs_clean_validation_images(data: Data) -> None:
    with pytest.warns(UserWarning, match="seen the validation images"):
        result = pb.compress(
            pb.nets.build("small_cnn", in_channels=1, image_size=8), data, "l1", trained=True, epochs=4, **SETTINGS
        )
    assert result.report["validation_clean"] is False
    with pytest.raises(ConfigError, match="needs validation images"):
        pb.compress(
            "small_cnn",
            replace(data, valid=replace(data.valid, images=data.valid.images[:0], labels=data.valid.labels[:0])),
            "l1",
            epochs=4,
            **SETTINGS,
        )
