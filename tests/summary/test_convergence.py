"""What a posterior says of its own way: scales since the start, KL by epoch, knowledge that was lost."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.summary.convergence import kl_fall
from pyrobnn.summary.netcdf import read_posterior
from pyrobnn.summary.state import from_state, to_state
from pyrobnn.summary.types import Convergence
from pyrobnn.views.netcdf import save_netcdf


def separable() -> tuple[Tensor, Tensor]:
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def separable_images() -> tuple[Tensor, Tensor]:
    x, y = separable()
    return x.reshape(-1, 1, 2, 2), y


def flat_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def trained() -> nn.Sequential:
    """A network that knows its classes."""
    torch.manual_seed(0)
    x, y = separable()
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net


def model_of(net: nn.Module, prior: Any = None) -> pb.BayesianModel:
    groups = pb.channel_groups(net, separable()[0][:2])
    return pb.BayesianModel(net, prior or pb.priors.Gaussian(1.0), data_size=96, groups=groups)


def steps(model: pb.BayesianModel, guide: Any, count: int, lr: float = 1e-3) -> None:
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO())
    for _ in range(count):
        svi.step(*separable())


def stock(model: pb.BayesianModel) -> AutoNormal:
    """Without pb.guides.auto, at the weights."""
    return AutoNormal(model, init_loc_fn=pb.guides.initial_loc(model), init_scale=0.02)


@pytest.mark.parametrize("make", [pb.guides.MeanField, pb.guides.auto, stock])
def test_change_of_scales_is_that_of_the_medians(make: Any) -> None:
    model = model_of(trained())
    guide = make(model)
    steps(model, guide, 1, lr=1e-6)
    assert pb.summarize(model, guide, draws=0).convergence.scale_change < 1e-3
    before = {name: site.scale.median() for name, site in pb.summarize(model, guide, draws=0).sites.items()}
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if "log_scale" in name:
                parameter.add_(0.7)
            elif "scales" in name:  # AutoNormal's are softplus of these
                parameter.copy_(parameter.exp().log1p().mul(2.0).expm1().log())
    found = pb.summarize(model, guide, draws=0)
    for name, change in found.convergence.by_site.items():
        assert change == pytest.approx(float((found.sites[name].scale.median() / before[name]).log()), rel=0.02)
    assert found.convergence.scale_change == pytest.approx(
        math.log(2) if make is not pb.guides.MeanField else 0.7, rel=0.01
    )


def test_a_guide_without_scales_says_nothing() -> None:
    model = model_of(trained())
    guide = pb.guides.auto(model, AutoDelta)
    steps(model, guide, 1)
    assert pb.summarize(model, guide, draws=0).convergence is None


@pytest.mark.parametrize(
    ("kl", "fall"), [([8.0, 4.0], 0.5), ([9.0, 9.0, 8.1], 0.1), ([100.0] * 4 + [81.0] * 3 + [64.0, 64.0], 0.111)]
)
def test_fall_of_the_kl_per_epoch(kl: list[float], fall: float) -> None:
    assert kl_fall(kl) == pytest.approx(fall, abs=1e-3)


def test_nothing_is_said_of_a_single_epoch_or_no_kl() -> None:
    assert kl_fall([3.0]) is None and kl_fall([0.0, 0.0]) is None


def test_verdicts() -> None:
    still = Convergence(0.02, kl_fall=0.12)
    assert not still.settled and "hardly left its start" in str(still) and "12.0% an epoch" in str(still)
    moving = Convergence(1.5, kl_fall=0.12)
    assert not moving.settled and "still moves" in str(moving)
    # A KL that stands still where it started is no sign of anything.
    assert not Convergence(0.02, kl_fall=0.001).settled and not Convergence(0.01).settled
    assert Convergence(0.5, kl_fall=0.001).settled and Convergence(0.5).settled
    assert Convergence(None, kl_fall=0.001).settled


def test_a_posterior_that_starts_at_its_equilibrium_need_not_leave_it() -> None:
    still = Convergence(0.02, kl_fall=0.001, at_curvature=True)
    assert still.settled and "hardly" not in str(still)
    assert str(still).startswith("settled (started at the curvature of the likelihood; ")
    assert "still moves" in str(Convergence(0.02, kl_fall=0.12, at_curvature=True))


@pytest.mark.parametrize(
    ("prior", "kind"),
    [
        (pb.priors.ARDNoise, pb.guides.NormalNoise),
        (pb.priors.LogUniformNoise, pb.guides.TruncatedLogNormalNoise),
    ],
)
def test_a_guide_knows_that_it_was_put_at_the_curvature(prior: Any, kind: Any) -> None:
    model = model_of(trained(), prior())
    guide = kind(model)
    steps(model, guide, 1, lr=1e-6)
    assert not pb.summarize(model, guide, draws=0).convergence.at_curvature
    there = kind(model)
    there.start_at({"0": torch.full((16,), 50.0)}, {})
    steps(model, there, 1, lr=1e-6)
    found = pb.summarize(model, there, draws=0).convergence
    assert found.at_curvature and found.settled and found.scale_change < 1e-3


def test_what_is_known_outlives_a_round_without_a_fit() -> None:
    """The search under --max-drop cuts again by the scores of an earlier fit."""
    fitted = pb.Posterior({}, {}, convergence=Convergence(0.5, kl_fall=0.001))
    full = pb.PruningPlan(keep={}, channels={})
    assert fitted.merge(pb.Posterior({}, {}), full).convergence == fitted.convergence
    later = pb.Posterior({}, {}, convergence=Convergence(0.7))
    assert fitted.merge(later, full).convergence == later.convergence


def test_later_rounds_of_a_run_know_the_start_of_the_first() -> None:
    """Two rounds: the second guide is made anew from what the first left."""
    data = pb.load_data(separable_images())
    options = {"epochs": 8, "target_macs": 0.5, "recipe": {"rounds": 2}, "precision": "fp32", "progress": False}
    run = pb.compress(flat_net(), data, "ard", **options)
    assert len(run.report["rounds"]) == 2
    assert run.posterior.convergence.at_curvature and "hardly" not in str(run.posterior.convergence)


def test_history_of_fit_is_used_kept_and_shown(tmp_path: Path) -> None:
    model = model_of(trained(), pb.priors.ARDNoise())
    guide = pb.guides.NormalNoise(model)
    steps(model, guide, 2)
    model.history = [{"kl": 100.0}, {"kl": 50.0}]
    posterior = pb.summarize(model, guide, draws=3)
    assert posterior.convergence.kl_fall == pytest.approx(0.5)
    assert from_state(to_state(posterior)).convergence == posterior.convergence
    axes = posterior.plot(ax=Figure().subplots())
    assert "the KL falls by 50.0% an epoch" in " ".join(axes.get_xlabel().split())
    attrs = posterior.to_arviz()["posterior"].attrs
    assert attrs["convergence"] == str(posterior.convergence)
    assert str(posterior.convergence) in repr(posterior)
    again = read_posterior(save_netcdf(posterior, tmp_path / "posterior.nc").read_bytes(), "here")
    assert str(again.convergence) == str(posterior.convergence)
    assert again.sites["0.noise"].dims == ("channel",) and again.sites["0.noise"].independent


def test_a_guide_that_forgot_the_network_is_told() -> None:
    """AutoNormal as Pyro starts it: weights at the prior's median, 0."""
    model = model_of(trained())
    guide = AutoNormal(model)
    steps(model, guide, 1)
    with pytest.warns(UserWarning, match=r"no better than chance.*pb\.guides\.auto\(model, AutoNormal\)"):
        pb.summarize(model, guide, draws=0)


@pytest.mark.parametrize("make", [pb.guides.auto, pb.guides.MeanField])
def test_one_that_did_not_is_not(make: Any) -> None:
    model = model_of(trained())
    guide = make(model)
    steps(model, guide, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pb.summarize(model, guide, draws=0)


def test_an_untrained_network_knew_nothing_to_forget() -> None:
    torch.manual_seed(3)
    model = model_of(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)))
    guide = AutoNormal(model)
    steps(model, guide, 1)
    pb.summarize(model, guide, draws=0)
