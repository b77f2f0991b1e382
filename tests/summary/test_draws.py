"""Draws that a posterior keeps or can make, log-likelihoods for leave-one-out, names of axes, short reprs."""

from __future__ import annotations

from typing import Any

import arviz as az
import numpy as np
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.errors import ConfigError, DataError
from pyrobnn.summary.reading import guide_runs
from pyrobnn.views.datasets import datasets

X, Y = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def fitted(family: Any = pb.guides.MeanField, prior: Any = None) -> tuple[pb.BayesianModel, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    model = pb.BayesianModel(net, prior or pb.priors.Gaussian(1.0), data_size=40, groups=pb.channel_groups(net, X[:2]))
    guide = family(model) if family is pb.guides.MeanField else pb.guides.auto(model, family)
    return model, guide


def test_named_sites_are_kept_and_are_the_draws_of_the_guide() -> None:
    model, guide = fitted()
    posterior = pb.summarize(model, guide, draws=5, seed=3, sites=["0.*"])
    assert set(posterior.draws) == {"0.norm", "0.weight"}
    traces = list(guide_runs(model, guide, 5, 3))
    assert torch.equal(
        posterior.draws["0.weight"], torch.stack([t.nodes["0.weight"]["value"] for t in traces]).detach()
    )
    norms = posterior.draws["0.weight"].flatten(2).norm(dim=-1)
    assert torch.allclose(posterior.draws["0.norm"], norms)
    with pytest.raises(ConfigError, match=r"sites='conv\*' matches no site; there are 0.weight"):
        pb.summarize(model, guide, draws=5, sites="conv*")


def test_weight_draws_are_made_where_loc_and_scale_say_all() -> None:
    model, guide = fitted()
    posterior = pb.summarize(model, guide, draws=400)
    draws = posterior.to_arviz(weight_draws=True)["posterior"]
    assert draws["4.weight"].dims == ("chain", "draw", "4.weight_out_feature", "4.weight_in_feature")
    for name in ("0.weight", "4.weight"):
        site = posterior.sites[name]
        standard = (torch.from_numpy(draws[name].values[0]) - site.loc) / site.scale
        assert abs(float(standard.mean())) < 0.05 and float(standard.std()) == pytest.approx(1.0, abs=0.03)


def test_weight_draws_of_a_joint_posterior_must_be_asked_for() -> None:
    model, guide = fitted(AutoLowRankMultivariateNormal)
    posterior = pb.summarize(model, guide, draws=6)
    with pytest.raises(DataError, match=r"draws of '0.weight'.*summarize again with sites=\['0.weight'\]"):
        posterior.to_arviz(weight_draws=True)
    kept = pb.summarize(model, guide, draws=6, sites="*").to_arviz(weight_draws=True)["posterior"]
    assert kept["0.weight"].shape == (1, 6, 4, 1, 3, 3)


def by_hand(model: pb.BayesianModel, guide: Any, draws: int) -> Tensor:
    """log p(y | x, θ_s) with plain networks at the drawn weights."""
    rows = []
    for trace in guide_runs(model, guide, draws, 0):
        net = model.deterministic({name: trace.nodes[name]["value"] for name in model.sites()}).eval()
        rows.append(net(X).log_softmax(-1).gather(1, Y[:, None])[:, 0])
    return torch.stack(rows).detach()


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
@pytest.mark.parametrize("prior", [pb.priors.Gaussian(1.0), pb.priors.ARDNoise()])
def test_log_likelihood_of_the_kept_draws_serves_loo(prior: Any) -> None:
    model, guide = fitted(prior=prior)
    posterior = pb.summarize(model, guide, draws=30, data=(X, Y))
    assert torch.allclose(posterior.predictive["log_likelihood"], by_hand(model, guide, 30), atol=1e-5)
    found = az.loo(posterior.to_arviz(), var_name="y")
    # Without importance weights the expected log predictive density has a plain formula to be near to.
    plain = torch.logsumexp(posterior.predictive["log_likelihood"], 0).sum() - 40 * np.log(30)
    assert float(getattr(found, "elpd_loo", getattr(found, "elpd", np.nan))) == pytest.approx(float(plain), abs=2.0)


def test_log_likelihood_from_a_split_in_batches() -> None:
    model, guide = fitted()
    data = pb.load_data("digits")
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = pb.BayesianModel(small, pb.priors.Gaussian(1.0), data_size=len(data.train))
    guide = pb.guides.MeanField(model)
    split = pb.summarize(model, guide, draws=2, data=data.test).predictive
    x, y = (torch.cat(part) for part in zip(*data.test.batches(100), strict=True))
    whole = pb.summarize(model, guide, draws=2, data=(x, y)).predictive
    assert torch.allclose(split["log_likelihood"], whole["log_likelihood"], atol=1e-4)
    assert torch.equal(split["observed"], y)


def test_log_likelihood_needs_draws_and_data_that_are_understood() -> None:
    model, guide = fitted()
    with pytest.raises(ConfigError, match="needs posterior draws, got draws=0"):
        pb.summarize(model, guide, draws=0, data=(X, Y))
    with pytest.raises(ConfigError, match=r"\(x, y\) tensors or a split of a data set, got list"):
        pb.summarize(model, guide, draws=1, data=[X])


def test_what_channels_have_in_common_shares_a_dimension() -> None:
    model, guide = fitted(prior=pb.priors.ARDNoise(weights=pb.priors.Gaussian(1.0)))
    draws = pb.summarize(model, guide, draws=4).to_arviz()["posterior"]
    assert draws["0.noise"].dims == draws["0.norm"].dims == ("chain", "draw", "0_channel")


def test_axes_are_named_by_the_kind_of_layer() -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ConvTranspose2d(3, 2, 2), nn.BatchNorm2d(2), nn.Linear(3, 2))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0, select="*"), data_size=4)
    sites = pb.summarize(model, pb.guides.MeanField(model), draws=0).sites
    assert sites["0.weight"].dims == ("filter", "in_channel", "kw") and sites["0.bias"].dims == ("filter",)
    assert sites["1.weight"].dims == ("in_channel", "filter", "kh", "kw")
    assert sites["2.weight"].dims == sites["2.bias"].dims == ("channel",)
    assert sites["3.weight"].dims == ("out_feature", "in_feature") and sites["3.bias"].dims == ("out_feature",)
    gated = pb.BayesianModel(net, pb.priors.EdgeSpikeSlab(gates="hard-concrete", select="3.weight"), data_size=4)
    sites = pb.summarize(gated, pb.guides.MeanField(gated), draws=0).sites
    assert sites["gate_logit.3.weight"].dims == ("out_feature", "in_feature")


def test_reprs_are_short() -> None:
    model, guide = fitted(prior=pb.priors.ARDNoise(weights=pb.priors.Gaussian(1.0)))
    posterior = pb.summarize(model, guide)
    assert len(repr(posterior)) < 800 and "0.noise" not in repr(posterior)
    assert repr(posterior.sites["0.noise"]) == "SiteSummary('0.noise', channel, shape=(4,))"
    assert repr(pb.PruningPlan({"0": [0, 2]}, {"0": 4})) == "PruningPlan(0 2 of 4)"
    data = pb.load_data("digits")
    assert len(repr(data)) < 200 and len(repr(data.train)) < 80
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    digits = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=len(data.train))
    fit = pb.fit(digits, pb.guides.MeanField(digits), data, epochs=1, max_steps=2, progress=False)
    assert repr(fit).startswith("FitResult(1 epochs in ") and "valid_accuracy 0." in repr(fit) and len(repr(fit)) < 120
    assert "kept 4 of 4" in repr(posterior.channels["0"]) and len(repr(posterior.channels["0"])) < 120


def test_draws_made_of_two_layers_are_independent() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=40)
    posterior = pb.summarize(model, pb.guides.MeanField(model))
    found = datasets(posterior, weight_draws=True)["posterior"]
    one, two = (torch.from_numpy(np.array(found[name])[0]) for name in ("3.weight", "5.weight"))
    both = torch.stack([(value - value.mean(0)).flatten() for value in (one, two)])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1
    alone = datasets(posterior, weight_draws=["5.weight"])["posterior"]["5.weight"]
    assert np.array_equal(alone, found["5.weight"])


def test_log_likelihood_of_targets_of_several_numbers(tmp_path: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20, 2)
    model = pb.BayesianModel(
        nn.Sequential(nn.Linear(3, 2)), pb.priors.Gaussian(1.0), data_size=20, likelihood=pb.likelihoods.Gaussian(1.0)
    )
    guide = pb.guides.MeanField(model)
    with pytest.raises(DataError, match="reshape the targets"):
        pb.summarize(model, guide, draws=3, data=(x, y[:, 0]))
    posterior = pb.summarize(model, guide, draws=3, data=(x, y))
    assert posterior.predictive["log_likelihood"].shape == (3, 20)
    found = datasets(posterior)
    assert found["observed_data"]["y"].dims == ("example", "target_0")
    assert np.array_equal(found["observed_data"]["y"], y)
    labels = pb.BayesianModel(
        nn.Sequential(nn.Linear(3, 2)), pb.priors.Gaussian(1.0), data_size=20, likelihood=pb.likelihoods.Bernoulli()
    )
    whole = [
        pb.summarize(labels, pb.guides.MeanField(labels), draws=3, data=(x, kind)).predictive["log_likelihood"]
        for kind in ((y > 0).long(), (y > 0).float())
    ]
    assert torch.equal(*whole)
