"""The posterior that survives the cut: what it starts from, that it is fitted, saved and loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import cli
from pyrobnn.data import Data
from pyrobnn.guides import NoLatents
from pyrobnn.guides.noise import NormalNoise
from pyrobnn.posterior.bayesian_net import BayesianNet, settings
from pyrobnn.posterior.draws import draw_tensors, remaining_scales
from pyrobnn.priors.noise import ARDNoise

QUICK: dict[str, Any] = {"epochs": 4, "precision": "fp32", "seed": 2, "progress": False}


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(400), test=full.test.take(200))


def small() -> nn.Module:
    torch.manual_seed(0)
    return pb.nets.build("small_cnn", in_channels=1, image_size=8)


def test_remaining_scales_of_weights_are_those_of_the_guide(data: Data) -> None:
    model = pb.BayesianModel(small(), pb.priors.Gaussian(1.0), data_size=100)
    guide = pb.guides.MeanField(model, init_scale=0.3)
    scales = remaining_scales(model, guide, draws=300)
    assert set(scales) == set(guide.moments())
    for name, (_, sd) in guide.moments().items():
        assert torch.allclose(scales[name], sd, rtol=0.25)  # 1/sqrt(2 * 300) is 0.04, over 10^4 weights
        assert abs(float((scales[name] / sd).mean()) - 1) < 0.01


def test_remaining_scales_of_noise_are_weight_times_noise(data: Data) -> None:
    """Noise theta_c on the consumers of channel c gives W[:, c] the standard deviation |W[:, c]| sd(theta_c)."""
    net = small()
    table = pb.channel_groups(net, data.example)
    model = pb.BayesianModel(net, ARDNoise(), data_size=100, groups=table)
    guide = NormalNoise(model, init_scale=0.2)
    with torch.no_grad():
        guide.log_scale["conv1|noise"].copy_(torch.linspace(-4, -1, table["conv1"].channels))
    scales = remaining_scales(model, guide, draws=500)
    expected = (
        net.conv2.weight.detach().abs() * torch.linspace(-4, -1, table["conv1"].channels).exp()[None, :, None, None]
    )
    assert torch.allclose(scales["conv2.weight"], expected, rtol=0.2, atol=1e-7)
    assert "conv1.weight" not in scales  # nobody's consumer: it has no posterior


def test_draws_leave_the_random_state_alone_and_repeat() -> None:
    model = pb.BayesianModel(small(), pb.priors.Gaussian(1.0), data_size=100)
    guide = pb.guides.MeanField(model)
    before = torch.get_rng_state()
    first = [d["fc1.weight"] for d in draw_tensors(model, guide, 3, seed=4)]
    assert torch.equal(torch.get_rng_state(), before)
    again = []
    for drawn in draw_tensors(model, guide, 3, seed=4):
        torch.rand(5)  # the caller's own use of randomness
        again.append(drawn["fc1.weight"])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    with pytest.raises(pb.ConfigError, match="at least 1"):
        next(draw_tensors(model, guide, 0))


def test_widths_that_drown_the_net_are_narrowed_by_one_factor(data: Data) -> None:
    net = small()
    config = pb.FitConfig(epochs=6, precision="fp32", lr=2e-3)
    trained = pb.fit(pb.BayesianModel(net, data_size=400), NoLatents(), data, config=config, progress=False)
    net = pb.deterministic_net(trained.model, trained.guide)
    rms = {name: p.detach().square().mean().sqrt() for name, p in net.named_parameters() if p.dim() > 1}

    def chosen(width: float) -> tuple[float, pb.BayesianNet]:
        scales = {name: torch.full_like(net.get_parameter(name), float(width * unit)) for name, unit in rms.items()}
        around = pb.BayesianNet.around(net, data_size=400, scales=scales)
        before = torch.get_rng_state()
        factor = around.choose_width(data.train, kl_weight=0.1)
        assert torch.equal(torch.get_rng_state(), before)
        for name, (loc, scale) in around.guide.moments().items():
            assert torch.equal(loc, net.get_parameter(name))
            assert torch.allclose(scale, torch.as_tensor(factor * width * rms[name]), rtol=1e-4)
        return factor, around

    assert chosen(0.05)[0] == 1.0
    factor, narrowed = chosen(1.5)
    assert 1 / 32 < factor < 1.0
    # The choice is what a direct comparison says: cross-entropy under draws, and KL, at this and at other widths.
    loss = {k: _minus_elbo(narrowed, data, k / factor) for k in (factor / 2, factor, min(1.0, 2 * factor))}
    assert min(loss, key=lambda k: loss[k]) == factor


def _minus_elbo(net: pb.BayesianNet, data: Data, widen: float) -> float:
    """-ELBO at KL weight 0.1 of all training images, from 40 draws and the closed form of two Gaussians."""
    x, y = data.train.normalise(data.train.images), data.train.labels
    start = net.guide.moments()
    kl = 0.0
    for loc, scale in start.values():
        posterior = torch.distributions.Normal(loc, widen * scale)
        prior = torch.distributions.Normal(0.0, (2 / loc[0].numel()) ** 0.5)
        kl += float(torch.distributions.kl_divergence(posterior, prior).sum())
    torch.manual_seed(1)
    nll = 0.0
    for _ in range(40):
        drawn = {name: loc + widen * scale * torch.randn_like(loc) for name, (loc, scale) in start.items()}
        with torch.no_grad():
            logits = torch.func.functional_call(net.mean_net(), drawn, (x,))
        nll += float(nn.functional.cross_entropy(logits, y, reduction="sum")) / 40
    return nll + 0.1 * kl


def test_starts_at_the_net_and_as_wide_as_told() -> None:
    net = small()
    known = torch.full_like(net.fc1.weight, 0.05)
    known[0] = 0.0  # nothing known of this row
    around = pb.BayesianNet.around(net, data_size=100, scales={"fc1.weight": known})
    mean, sd = around.guide.moments()["fc1.weight"]
    assert torch.equal(mean, net.fc1.weight.detach())
    assert torch.allclose(sd[1:], torch.tensor(0.05))
    usual = 0.1 * net.fc1.weight.detach().square().mean().sqrt()
    assert torch.allclose(sd[0], usual.expand_as(sd[0]))
    x = torch.randn(4, 1, 8, 8)
    assert torch.allclose(around.mean_net()(x), net.eval()(x), atol=1e-6)


def test_state_returns_to_the_same_bits(data: Data) -> None:
    net = small()
    first = pb.BayesianNet.around(net, data_size=len(data.train)).fit(
        data, pb.FitConfig(**{**settings(net), "epochs": 1, "precision": "fp32"}), progress=False
    )
    second = pb.BayesianNet.from_state(small(), first.state(), data_size=len(data.train))
    a, b = first.predict(data.test, draws=3), second.predict(data.test, draws=3)
    assert torch.equal(a.probs, b.probs)
    assert bool((a.mutual_information > 0).any())
    broken = first.state()
    del broken["log_scale.fc1.weight"]
    with pytest.raises(pb.CheckpointError, match="does not fit"):
        pb.BayesianNet.from_state(small(), broken, data_size=10)


def test_the_fit_finds_the_posterior_of_a_linear_net() -> None:
    """Logistic regression with one weight: mean-field is exact in one dimension up to non-normality."""
    torch.manual_seed(1)
    x = torch.randn(300, 1)
    y = (torch.rand(300) < torch.sigmoid(1.5 * x[:, 0])).long()
    # Class logits (0, w x): the second of two rows is the weight, the first is no weight at all.
    net = OneWeight()
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=300)
    grid = torch.linspace(-1, 4, 4001, dtype=torch.float64)
    log_p = -0.5 * grid**2 + torch.stack(
        [
            torch.nn.functional.logsigmoid(torch.where(y == 1, 1.0, -1.0).double() * g * x[:, 0].double()).sum()
            for g in grid
        ]
    )
    p = torch.softmax(log_p, 0)
    mean = float((p * grid).sum())
    sd = float((p * (grid - mean) ** 2).sum().sqrt())
    images = x.view(300, 1, 1, 1)
    split = pb.load_data(((images, y), (images, y)), valid_fraction=0, mean=(0.0,), std=(1.0,))
    fitted = pb.BayesianNet(model, pb.guides.MeanField(model, init_scale=0.5, scale_lr=2.0))
    fitted.fit(
        split,
        pb.FitConfig(epochs=150, batch_size=300, lr=0.05, lr_schedule="cosine", precision="fp32", num_particles=8),
        progress=False,
    )
    got_mean, got_sd = fitted.guide.moments()["w.weight"]
    assert float(got_mean) == pytest.approx(mean, abs=0.25 * sd)
    assert float(got_sd) == pytest.approx(sd, rel=0.15)


class OneWeight(nn.Module):
    """Two classes with logits 0 and w x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.w(x.flatten(1))
        return torch.cat([torch.zeros_like(logit), logit], 1)


@pytest.mark.parametrize("method", ["gaussian", "ard", "rbp"])
def test_every_kind_of_method_leaves_one(method: str, data: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = pb.compress("small_cnn", data, method=method, target_macs=0.5, bayesian_epochs=2, out=out, **QUICK)
    assert result.bayesian is not None
    assert result.report["epochs_by_phase"]["bayesian"] == 2
    assert result.report["epochs"] == pytest.approx(sum(result.report["epochs_by_phase"].values()))
    shapes = {name: value.shape for name, value in result.bayesian.mean_net().state_dict().items()}
    assert shapes == {name: value.shape for name, value in result.compact.state_dict().items()}
    found = result.bayesian.predict(data.test, draws=50)
    measured = result.report["bayesian"]
    assert measured["nll"] == pytest.approx(found.metrics(data.test.labels).nll)
    assert measured["accuracy"] > 0.5 and measured["kl_weight"] > 0
    loaded = pb.load_bayesian(out)
    assert torch.equal(loaded.predict(data.test, draws=3).probs, result.bayesian.predict(data.test, draws=3).probs)
    json.dumps(result.report)
    x = data.test.normalise(data.test.images)
    with torch.no_grad():
        same = result.dense(x).argmax(1) == result.compact(x).argmax(1)
    assert result.report["robustness"]["agreement"] == pytest.approx(float(same.float().mean()))
    text = (out / "report.html").read_text()
    assert "The posterior of the compact net" in text and "What accuracy does not show" in text


def test_bad_number_of_epochs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "small_cnn", "--data", "digits", "--out", str(tmp_path / "x"), "--bayesian-epochs", "-1"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compress", *options])
    assert stopped.value.code == 2
    assert "--bayesian-epochs must be 0 or more, got -1" in capsys.readouterr().err


def test_a_finished_run_can_be_given_one(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = pb.compress("small_cnn", data, target_macs=0.5, out=out, **QUICK)
    assert first.bayesian is None and "bayesian" not in first.report
    assert set(first.report["epochs_by_phase"]) == {"dense", "infer", "tune"}
    with pytest.raises(pb.CheckpointError, match="--bayesian-epochs"):
        pb.load_bayesian(out)
    with pytest.raises(pb.ConfigError, match="--bayesian-epochs"):
        pb.compress("small_cnn", data, bayesian_epochs=-1, **QUICK)
    second = pb.compress("small_cnn", data, target_macs=0.5, out=out, resume=True, bayesian_epochs=1, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(first.compact.parameters(), second.compact.parameters(), strict=True))
    assert second.report["compact"]["accuracy"] == first.report["compact"]["accuracy"]
    assert second.report["seconds"] >= first.report["seconds"]
    with pytest.raises(pb.CheckpointError, match="a posterior of 1 epochs, not 2"):
        pb.compress("small_cnn", data, target_macs=0.5, out=out, resume=True, bayesian_epochs=2, **QUICK)
    whole = pb.compress("small_cnn", data, target_macs=0.5, bayesian_epochs=1, **QUICK)
    assert whole.bayesian is not None and second.bayesian is not None
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.bayesian.state().values(), second.bayesian.state().values(), strict=True)
    )


def test_a_module_called_log_scale() -> None:
    """Its tensors are not taken for scales of others."""
    torch.manual_seed(0)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.log_scale = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.log_scale(nn.functional.linear(x, self.weight))

    net = Named()
    first = BayesianNet.around(net, data_size=10)
    state = first.state()
    again = BayesianNet.from_state(net, state, data_size=10)
    assert all(torch.equal(value, again.state()[name]) for name, value in state.items())
    for name, (loc, scale) in first.guide.moments().items():
        assert all(torch.equal(a, b) for a, b in zip((loc, scale), again.guide.moments()[name], strict=True))
