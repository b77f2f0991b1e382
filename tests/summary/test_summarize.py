"""Summaries against counting by hand, draws and exact ratios."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels.parts import per_unit
from pyrobnn.guides import MeanField
from pyrobnn.priors.noise import ARDNoise, SpikeNoise
from pyrobnn.summary.state import from_state, to_state
from pyrobnn.summary.summarize import _evidence, site_moments
from pyrobnn.summary.types import ChannelSummary, Posterior


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
    )


def model_with(prior: Any) -> pb.BayesianModel:
    net = small()
    return pb.BayesianModel(net, prior, data_size=20, groups=pb.channel_groups(net, torch.randn(2, 1, 4, 4)))


def shaken(guide: MeanField) -> MeanField:
    """A guide with distinct locations and scales everywhere."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


# Channel-level sites


def test_noise_snr_and_evidence() -> None:
    model = model_with(SpikeNoise(0.7))
    guide = shaken(MeanField(model, init_scale=0.3))
    posterior = pb.summarize(model, guide, draws=50, seed=1)
    assert set(posterior.sites) == {"0.noise", "2.noise"}
    for name, site in posterior.sites.items():
        loc, scale = (t.detach() for t in guide.moments()[name])
        channel = posterior.channels[name[0]]
        assert (site.kind, site.group, site.dims) == ("channel", name[0], ("channel",))
        assert torch.allclose(channel.snr, loc.abs() / scale) and channel.statistic == "snr"
        assert torch.allclose(channel.nats, 0.5 * (loc / scale) ** 2)
        assert bool(channel.kept.all())
        # Savage-Dickey: log of posterior over prior density at zero, with the sign turned.
        zero = torch.zeros_like(loc)
        ratio = dist.Normal(0.0, 0.7).log_prob(zero) - dist.Normal(loc, scale).log_prob(zero)
        assert channel.evidence is not None and torch.allclose(channel.evidence, ratio, atol=1e-5)
        draws = posterior.draws[name]
        assert draws.shape == (50, len(loc))
        assert float(((draws.mean(0) - loc) / (scale / 50**0.5)).abs().max()) < 4.5
    again = pb.summarize(model, guide, draws=50, seed=1)
    assert all(torch.equal(again.draws[n], d) for n, d in posterior.draws.items())
    assert posterior.net_widths == {"0": (4, 4), "2": (6, 6)}


def test_no_gaussian_prior_no_evidence() -> None:
    model = model_with(ARDNoise())
    assert all(c.evidence is None for c in pb.summarize(model, MeanField(model), draws=0).channels.values())
    assert _evidence(torch.ones(2), torch.ones(2), dist.Normal(torch.ones(2), 1.0), 1.0) is None
    assert _evidence(torch.ones(2), torch.ones(2), dist.Laplace(0.0, 1.0), 1.0) is None


# Weight-level sites


def test_weight_posterior_per_channel_by_hand() -> None:
    model = model_with(pb.priors.Gaussian(0.5))
    guide = shaken(MeanField(model, init_scale=0.5))
    posterior = pb.summarize(model, guide, draws=0)
    moments = {name: (m.detach(), s.detach()) for name, (m, s) in guide.moments().items()}
    assert posterior.sites["2.weight"].dims == ("filter", "in_channel", "kh", "kw")
    assert posterior.sites["5.weight"].dims == ("out_feature", "in_feature")
    w1, s1 = moments["0.weight"]
    w2, s2 = moments["2.weight"]
    w3, s3 = moments["5.weight"]
    cases = {
        "0": [(w1, s1, lambda t: t.flatten(1).sum(1)), (w2, s2, lambda t: t.sum((0, 2, 3)))],
        "2": [(w2, s2, lambda t: t.flatten(1).sum(1)), (w3, s3, lambda t: t.view(3, 6, 4).sum((0, 2)))],
    }
    for group, sides in cases.items():
        channel = posterior.channels[group]
        squares = sum(total((w / s) ** 2) for w, s, total in sides)
        taps = sum(total(torch.ones_like(w)) for w, s, total in sides)
        assert torch.allclose(channel.snr, (squares / taps).sqrt(), rtol=1e-4)
        square = channel.snr.square()
        torch.testing.assert_close(channel.nats, square / square.sum(), rtol=1e-4, atol=0)
        prior = dist.Normal(0.0, 0.5)
        zero = torch.zeros(())
        evidence = sum(total(prior.log_prob(zero) - dist.Normal(w, s).log_prob(zero)) for w, s, total in sides)
        assert channel.evidence is not None and torch.allclose(channel.evidence, evidence, rtol=1e-3, atol=1e-2)


def test_the_ranking_does_not_hang_on_the_initial_scale() -> None:
    """Half the initial posterior scale, the same order of channels after a short fit."""
    data = pb.load_data("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    groups = pb.channel_groups(net, data.example)
    start = pb.BayesianModel(net, data_size=len(data.train), groups=groups)
    net = pb.deterministic_net(start, pb.fit(start, pb.guides.NoLatents(), data, epochs=3, progress=False).guide)
    ranks = []
    for scale in (0.1, 0.05):
        model = pb.BayesianModel(net, pb.priors.Gaussian("fan_in"), data_size=len(data.train), groups=groups)
        guide = MeanField(model, init_scale=scale)
        pb.fit(model, guide, data, epochs=6, guide_lr=5e-3, estimator="local", validate=False, progress=False)
        snr = [channel.snr for channel in pb.summarize(model, guide, draws=0).channels.values()]
        ranks.append([values.argsort().argsort().float() for values in snr])
    for first, second in zip(*ranks, strict=True):
        assert torch.corrcoef(torch.stack([first, second]))[0, 1] > 0.8


def test_norm_draws_of_weight_posteriors() -> None:
    model = model_with(pb.priors.Gaussian(0.5))
    guide = shaken(MeanField(model, init_scale=1e-6))
    with torch.no_grad():
        for scale in guide.log_scale.values():
            scale.fill_(-14.0)
    posterior = pb.summarize(model, guide, draws=3)
    assert set(posterior.draws) == {"0.norm", "2.norm"}
    norms = guide.loc["2|weight"].detach().flatten(1).norm(dim=1)
    assert torch.allclose(posterior.draws["2.norm"], norms.expand(3, 6), rtol=1e-4)


def test_point_estimates_have_a_magnitude() -> None:
    model = model_with(pb.priors.Gaussian(0.5))
    guide = AutoDelta(model)
    guide(torch.randn(2, 1, 4, 4), torch.tensor([0, 2]))
    channel = pb.summarize(model, guide, draws=0).channels["0"]
    w1, w2 = (guide.median()[f"{k}.weight"].detach() for k in (0, 2))
    wanted = (w1.flatten(1).square().sum(1) * w2.square().sum((0, 2, 3))).pow(0.25)
    assert channel.statistic == "magnitude" and torch.allclose(channel.snr, wanted, rtol=1e-4)
    plain = pb.summarize(model_with(None), pb.guides.NoLatents(), draws=0)
    assert plain.sites == {} and plain.channels["2"].statistic == "magnitude"


def test_per_unit_ignores_padding() -> None:
    tensor = torch.arange(12.0).view(3, 4)
    index = torch.tensor([[0, 2], [1, -1]])
    assert per_unit(tensor, 1, index).tolist() == [12.0 + 18.0, 15.0]
    assert per_unit(tensor, 0, index).tolist() == [6.0 + 38.0, 22.0]
    assert per_unit(torch.arange(4.0), 0, index).tolist() == [2.0, 1.0]


# Moments of foreign guides


def positive_model(prior_scale: float = 0.4) -> pb.BayesianModel:
    def prior(view: Any) -> dict[str, Tensor]:
        scale = pyro.sample("gain", dist.LogNormal(torch.zeros(3), prior_scale).to_event(1))
        return {"5.bias": view.tensors["5.bias"] * scale}

    return pb.BayesianModel(small(), prior, data_size=20)


def test_moments_of_transformed_sites_by_running() -> None:
    """AutoNormal on a positive site: log-normal moments from draws."""
    model = positive_model()
    guide = AutoNormal(model, init_scale=0.4)
    guide(torch.randn(2, 1, 4, 4), torch.tensor([0, 2]))
    with torch.no_grad():
        guide.locs.gain.copy_(torch.tensor([-0.5, 0.0, 0.5]))
    rng = torch.get_rng_state()
    mean, sd = site_moments(model, guide, draws=4000)["gain"]
    assert torch.equal(torch.get_rng_state(), rng)
    exact = dist.LogNormal(guide.locs.gain.detach(), guide.scales.gain.detach())
    assert torch.allclose(mean, exact.mean, atol=4 * float(exact.stddev.max()) / 4000**0.5)
    assert torch.allclose(sd, exact.stddev, rtol=0.15)
    again = site_moments(model, guide, draws=4000)["gain"]
    assert torch.equal(again[0], mean) and torch.equal(again[1], sd)


def test_exact_moments_need_no_draws() -> None:
    model = model_with(SpikeNoise(0.7))
    guide = AutoNormal(model, init_scale=0.2)
    guide(torch.randn(2, 1, 4, 4), torch.tensor([0, 2]))
    mean, sd = site_moments(model, guide, draws=0)["2.noise"]
    medians = guide.median()["2.noise"].detach()
    assert torch.allclose(mean, medians) and torch.allclose(sd, torch.full((6,), 0.2))


def test_joint_guide() -> None:
    model = model_with(SpikeNoise(0.7))
    guide = AutoMultivariateNormal(model, init_scale=0.2)
    guide(torch.randn(2, 1, 4, 4), torch.tensor([0, 2]))
    found = site_moments(model, guide, draws=3000)
    covariance = guide.get_posterior().covariance_matrix.detach().diagonal().sqrt()
    assert torch.allclose(torch.cat([found["0.noise"][1], found["2.noise"][1]]), covariance, rtol=0.1)


def test_a_guide_that_misses_a_site() -> None:
    model = model_with(SpikeNoise(0.7))

    def guide(*args: Any) -> None:
        pyro.sample("0.noise", dist.Normal(torch.ones(4), 0.1).to_event(1))

    with pytest.raises(pb.ConfigError, match=r"no site '2\.noise'"):
        pb.summarize(model, guide)


# Decisions and rounds


def summary(values: list[float], name: str = "g") -> ChannelSummary:
    snr = torch.tensor(values)
    return ChannelSummary(name, snr, snr.square() / 2, "snr", torch.ones(len(values), dtype=torch.bool))


def test_decisions_of_several_rounds_in_original_coordinates() -> None:
    first = Posterior({}, {"g": summary([5.0, 0.1, 4.0, 3.0, 0.2]), "h": summary([1.0, 2.0], "h")})
    one = pb.PruningPlan({"g": [0, 2, 3], "h": [0, 1]}, {"g": 5, "h": 2})
    decided = first.decide(one, threshold=1.0, round=0)
    assert decided.channels["g"].kept.tolist() == [True, False, True, True, False]
    assert decided.net_widths == {"g": (5, 3), "h": (2, 2)} and first.channels["g"].kept.all()
    two = pb.PruningPlan({"g": [0, 2], "h": [1]}, {"g": 3, "h": 2})
    later = Posterior({}, {"g": summary([7.0, 0.3, 8.0]), "h": summary([0.5, 2.5], "h")}).decide(two, round=1)
    merged = decided.merge(later, one)
    g, h = merged.channels["g"], merged.channels["h"]
    assert g.kept.tolist() == [True, False, False, True, False] and h.kept.tolist() == [False, True]
    # Cut channels keep the statistic of the round in which they were cut.
    assert g.snr.tolist() == pytest.approx([7.0, 0.1, 0.3, 8.0, 0.2]) and h.snr.tolist() == pytest.approx([0.5, 2.5])
    assert merged.net_widths == {"g": (5, 2), "h": (2, 1)} and g.round == 1
    assert one.compose(two).keep == {"g": [0, 3], "h": [1]}


def test_state_is_plain_data_and_comes_back(tmp_path: Any) -> None:
    model = model_with(SpikeNoise(0.7))
    posterior = pb.summarize(model, shaken(MeanField(model)), draws=4)
    posterior.history.append({"0": torch.ones(4)})
    torch.save(to_state(posterior), tmp_path / "state.pt")
    back = from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert back.sites["0.noise"].dims == ("channel",) and back.net_widths == posterior.net_widths
    for name, channel in posterior.channels.items():
        assert torch.equal(back.channels[name].snr, channel.snr)
        assert torch.equal(back.channels[name].kept, channel.kept)
    assert torch.equal(back.draws["2.noise"], posterior.draws["2.noise"])
    assert torch.equal(back.history[0]["0"], torch.ones(4))


def test_what_was_read_stays_when_the_guide_learns_on() -> None:
    model = model_with(SpikeNoise(0.7))
    guide = shaken(MeanField(model))
    posterior = pb.summarize(model, guide)
    before = {name: (site.loc.clone(), site.scale.clone()) for name, site in posterior.sites.items()}
    shaken(guide)
    moved = pb.summarize(model, guide)
    for name, (loc, scale) in before.items():
        assert torch.equal(posterior.sites[name].loc, loc) and torch.equal(posterior.sites[name].scale, scale)
        assert not torch.equal(moved.sites[name].loc, loc)


def test_deterministic_net_folds_the_mean() -> None:
    model = model_with(SpikeNoise(0.7))
    guide = shaken(MeanField(model))
    net = pb.deterministic_net(model, guide).eval()
    x = torch.randn(5, 1, 4, 4)
    noise = {name: mean for name, (mean, _) in guide.moments().items()}
    plain = small()
    hidden = torch.relu(plain[0](x)) * noise["0.noise"].view(1, -1, 1, 1)
    hidden = torch.relu(plain[2](hidden)) * noise["2.noise"].view(1, -1, 1, 1)
    assert torch.allclose(net(x), plain[5](hidden.flatten(1)), atol=1e-5)
    assert {n for n, _ in net.named_parameters()} == {n for n, _ in plain.named_parameters()}


@pytest.mark.parametrize("kind", [pb.guides.MeanField, pb.guides.auto])
def test_a_guide_that_has_diverged_is_refused_in_a_line(kind: Any) -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=10)
    guide = kind(model)
    if not list(guide.parameters()):
        guide(*model.seen)
    with torch.no_grad():
        next(guide.parameters()).fill_(torch.nan)
    with pytest.raises(pb.NumericalError, match=r"the guide's parameter \S+ holds NaN or infinity"):
        pb.summarize(model, guide, draws=0)
