"""The road by hand, to its end: plan, compact, tune, report; and runs with a prior and a guide of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.data import Data
from pyrobnn.methods.own import with_own
from pyrobnn.methods.registry import METHODS
from pyrobnn.report.sections import all_sections, settings

pytestmark = pytest.mark.filterwarnings("ignore:nothing was cut", "ignore:no target was given")
QUICK: dict[str, Any] = {"precision": "fp32", "progress": False}


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(200), valid=full.valid.take(50), test=full.test.take(60))


@pytest.fixture(scope="module")
def dense(data: Data) -> nn.Module:
    torch.manual_seed(0)
    return pb.tune(pb.nets.build("small_cnn", in_channels=1, image_size=8), data, epochs=6, **QUICK)


@pytest.fixture(scope="module")
def road(dense: nn.Module, data: Data) -> tuple[nn.Module, pb.PruningPlan, pb.Posterior]:
    groups = pb.channel_groups(dense, data.example)
    model = pb.BayesianModel(dense, pb.priors.Gaussian("fan_in"), data_size=len(data.train), groups=groups)
    guide = pb.guides.MeanField(model)
    pb.fit(model, guide, data, epochs=1, **QUICK)
    posterior = pb.summarize(model, guide)
    plan = pb.plan(posterior, target_macs=0.4, groups=groups)
    return pb.compact(pb.deterministic_net(model, guide), plan, data.example), plan, posterior


def keys(value: Any, path: str = "") -> set[str]:
    """Of nested mappings, but for what is named by the user's own groups or settings."""
    if not isinstance(value, Mapping) or path in (
        "/settings",
        "/options",
        "/refused",
        "/target",
        "/dense/widths",
        "/compact/widths",
    ):
        return {path}
    return {name for key, part in value.items() for name in keys(part, f"{path}/{key}")}


def test_the_report_of_the_road_by_hand_has_the_keys_of_a_run(
    dense: nn.Module, road: tuple[nn.Module, pb.PruningPlan, pb.Posterior], data: Data, tmp_path: Path
) -> None:
    small, plan, posterior = road
    tuned = pb.tune(small, data, dense, epochs=3, seed=1, **QUICK)
    result = pb.report_on(
        dense, tuned, plan, data, posterior=posterior, epochs={"infer": 1, "tune": 3}, out=tmp_path, max_drop=50.0
    )
    report = json.loads((tmp_path / "report.json").read_text())
    run = pb.compress(dense, data, "gaussian", trained=True, target_macs=0.4, epochs=3, **QUICK)
    missing = keys(run.report) - keys(report) - {"/precision_ms"}
    assert not missing and keys(report) - keys(run.report) <= {"/command", "/precision_ms"}
    assert report["epochs_by_phase"] == {"dense": 0, "infer": 1, "tune": 3} and report["target"]["met"] is True
    assert report["reduction"]["macs"] >= 0.6 and report["compact"]["widths"] == plan.widths()
    assert report["method"] == "by hand" and report["rule"] == "plan" and report["command"] is None
    with torch.no_grad():
        x = data.test.normalise(data.test.images)
        accuracy = float((tuned(x).argmax(1) == data.test.labels).float().mean())
        assert report["compact"]["accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert torch.equal(
            pb.load_compact(tmp_path, factory=lambda: pb.nets.build("small_cnn", in_channels=1, image_size=8))(x),
            tuned(x),
        )
    page = (tmp_path / "report.html").read_text()
    assert "Target met." in page and "pyrobnn compress" not in page
    assert result.posterior.channels["conv1"].kept.sum() == len(plan.keep["conv1"])
    assert not settings(report).code
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(pb.CheckpointError, match="holds another run"):
        pb.report_on(dense, tuned, plan, data, out=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert [s.id for s in all_sections(report, [], {}, "here")] and (tmp_path / "posterior.nc").exists()


def test_a_teacher_is_learned_from_and_nothing_given_is_touched(
    dense: nn.Module, road: tuple[nn.Module, pb.PruningPlan, pb.Posterior], data: Data
) -> None:
    small = road[0]
    before = {name: value.clone() for name, value in small.state_dict().items()}
    teacher = {name: value.clone() for name, value in dense.state_dict().items()}
    x = data.train.normalise(data.train.images)
    distance = {}
    for weight in (0.0, 0.9):
        tuned = pb.tune(small, data, dense, epochs=4, recipe={"distillation": weight}, **QUICK)
        with torch.no_grad():
            ours, theirs = tuned(x).log_softmax(1), dense(x).log_softmax(1)
        distance[weight] = float(nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean"))
    assert distance[0.9] < distance[0.0]
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(torch.equal(value, teacher[name]) for name, value in dense.state_dict().items())


def test_what_does_not_fit_is_said(
    dense: nn.Module, road: tuple[nn.Module, pb.PruningPlan, pb.Posterior], data: Data
) -> None:
    small, plan, _ = road
    with pytest.raises(pb.ConfigError, match=r"compose the plans of all cuts"):
        pb.report_on(dense, dense, plan, data)
    with pytest.raises(pb.ConfigError, match="a target is max_drop"):
        pb.report_on(dense, small, plan, data, max_dorp=1.0)
    with pytest.raises(pb.ConfigError, match="a recipe has no 'tune.lrr': did you mean"):
        pb.tune(small, data, recipe={"tune.lrr": 1.0})
    with pytest.raises(pb.ConfigError, match="expected a network"):
        pb.tune("small_cnn", data)  # type: ignore[arg-type]


# Runs with a prior and a guide of one's own


class Half(pb.priors.Gaussian):
    """Another prior."""


def shared_noise(view: Any) -> dict[str, Tensor]:
    """A prior as a function: noise on every channel."""
    factors = {}
    for group in view.groups:
        factors[group.name] = pyro.sample(
            f"{group.name}.noise", dist.Normal(torch.ones(group.channels), 0.5).to_event(1)
        )
    return view.gate(factors)


@pytest.mark.parametrize(
    ("method", "prior", "guide"),
    [
        ("gaussian", Half(0.5), None),
        ("ard", shared_noise, lambda model: pb.guides.auto(model, AutoNormal)),
        ("ard", shared_noise, AutoNormal),
    ],
)
def test_a_run_with_a_prior_and_a_guide_of_ones_own(
    method: str, prior: Any, guide: Any, data: Data, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"target_macs": 0.5, "epochs": 8, "recipe": {"rounds": 2}, **QUICK}
    report = pb.compress("small_cnn", data, method, prior=prior, guide=guide, out=tmp_path, **options).report
    assert report["method"] == "own" and report["reduction"]["macs"] >= 0.5 and len(report["rounds"]) == 2
    said = report["settings"]["method"]
    assert said["recipe"] == method and said["prior"] == (getattr(prior, "__name__", None) or "Half")
    with pytest.raises(pb.CheckpointError):  # another prior is another run
        pb.compress("small_cnn", data, method, prior=pb.priors.Laplace(1.0), out=tmp_path, resume=True, **options)


def test_what_is_no_prior_or_guide_is_said() -> None:
    ard = METHODS["ard"]
    with pytest.raises(pb.ConfigError, match=r"call it, prior=Gaussian\(\)"):
        with_own(ard, pb.priors.Gaussian, None)
    with pytest.raises(pb.ConfigError, match="takes a prior"):
        with_own(ard, 1.0, None)  # type: ignore[arg-type]
    with pytest.raises(pb.ConfigError, match="takes what makes a guide"):
        with_own(ard, None, nn.Linear(1, 1))
    with pytest.raises(pb.ConfigError, match="laplace has no prior"):
        with_own(METHODS["laplace"], None, pb.guides.MeanField)
    made = with_own(ard, pb.priors.Gaussian(1.0), lambda model: lambda *batch: None).guide
    with pytest.raises(pb.ConfigError, match="must be a module"):
        made(pb.BayesianModel(nn.Linear(1, 1), data_size=1))
