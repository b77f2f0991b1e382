"""The Laplace posterior of gates: against conjugate answers, quadrature, and a network with planted idle channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.criteria.laplace import gate_posterior, laplace_gates
from pyrobnn.errors import ConfigError
from pyrobnn.inference.curvature import GateFisher
from pyrobnn.summary.evidence import fit_prior_scale


def fisher(diagonal: list[float], **other: object) -> GateFisher:
    values = {"0": torch.tensor(diagonal, dtype=torch.float64)}
    return GateFisher(values, **{"blocks": None, "softened": None, "data_size": 100, "examples": 100, **other})


def log_evidence(information: Tensor, scale: float) -> float:
    """log ∫ exp(−½(θ−1)'F(θ−1)) N(θ; 0, s²) dθ, in closed form."""
    n = len(information)
    precision = information + torch.eye(n, dtype=torch.float64) / scale**2
    b = information.sum(1)
    quadratic = b @ torch.linalg.solve(precision, b) - information.sum()
    return float(0.5 * quadratic - 0.5 * torch.logdet(precision) - n * math.log(scale))


def test_the_prior_scale_has_the_greatest_marginal_likelihood():
    torch.manual_seed(1)
    root = torch.randn(5, 5, dtype=torch.float64)
    for information in (torch.diag(torch.tensor([0.3, 2.0, 9.0], dtype=torch.float64)), root @ root.T):
        best = fit_prior_scale(information)
        for factor in (0.97, 1.03):
            assert log_evidence(information, best) >= log_evidence(information, best * factor)


def test_posterior_and_evidence_of_a_gate_by_quadrature():
    f, s = [0.02, 1.0, 30.0], 0.8
    found = gate_posterior(fisher(f), prior_scale=s).channels["0"]
    theta = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    for k, value in enumerate(f):
        likelihood = torch.exp(-0.5 * value * (theta - 1) ** 2)
        joint = likelihood * torch.exp(-0.5 * (theta / s) ** 2) / (s * math.sqrt(2 * math.pi))
        total = torch.trapezoid(joint, theta)
        mean = torch.trapezoid(joint * theta, theta) / total
        variance = torch.trapezoid(joint * (theta - mean) ** 2, theta) / total
        assert float(found.loc[k]) == pytest.approx(float(mean), rel=1e-5)
        assert float(found.scale[k]) == pytest.approx(float(variance.sqrt()), rel=1e-5)
        assert float(found.nats[k]) == pytest.approx(0.5 * value, rel=1e-5)
        off = math.exp(-0.5 * value)  # the model without the channel has no gate to integrate over
        assert float(found.evidence[k]) == pytest.approx(math.log(float(total)) - math.log(off), abs=1e-5)


def test_blocks_count_what_others_make_up_for():
    """Two channels that say the same: alone each is worth nothing, as long as the other one stays."""
    torch.manual_seed(0)
    same, other = torch.randn(400, 1, dtype=torch.float64), torch.randn(400, 1, dtype=torch.float64)
    g = torch.cat([same, same + 1e-3 * torch.randn(400, 1, dtype=torch.float64), other], 1)
    block = g.T @ g
    information = fisher(block.diagonal().tolist(), blocks={"0": block})
    both = gate_posterior(information, block=True, prior_scale=1.0, draws=4000)
    alone = gate_posterior(fisher(block.diagonal().tolist()), prior_scale=1.0)
    assert bool((both.channels["0"].nats[:2] < 1.0).all()) and float(both.channels["0"].nats[2]) > 150
    assert bool((alone.channels["0"].nats > 150).all())
    draws = both.draws["0.gate"].double()
    precision = block + torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(torch.cov(draws.T), torch.linalg.inv(precision), rtol=0.1, atol=5e-3)


class Planted(nn.Module):
    """Two hidden channels of eight are dead: they are zero, and nobody reads them."""

    dead = (1, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mid, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)
        with torch.no_grad():
            self.head.weight *= 5  # what lives matters
            for k in self.dead:
                self.conv.weight[k] = 0
                self.conv.bias[k] = 0
                self.mid.weight[:, k] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mid(torch.relu(self.conv(x)))).mean((2, 3)))


def planted_data() -> pb.Data:
    return pb.load_data(torch.utils.data.TensorDataset(torch.randn(300, 1, 8, 8), torch.arange(300) % 3))


def test_the_posterior_finds_idle_channels_and_speaks_to_arviz_plots_and_plans():
    net, data = Planted(), planted_data()
    table = pb.channel_groups(net, data.example)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    posterior = laplace_gates(net, data, table, examples=200)
    channels = posterior.channels["conv"]
    assert channels.costs_nothing.nonzero().flatten().tolist() == list(Planted.dead)
    assert posterior.draws["conv.gate"].shape == (100, 8)
    kept = set(pb.plan(posterior, target_macs=0.9, groups=table).keep["conv"])
    assert not kept & set(Planted.dead)
    assert "conv.gate" in posterior.to_arviz().posterior
    posterior.plot()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    hard = laplace_gates(net, data, table, examples=200, temperature=None, curvature="block")
    assert hard.channels["conv"].ranking is None and channels.ranking is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "full"}, "'diagonal' or 'block'"),
        ({"prior_scale": 0.0}, "positive"),
        ({"examples": 0}, "training images"),
    ],
)
def test_bad_settings_are_refused_in_a_line(options, message):
    net, data = Planted(), planted_data()
    with pytest.raises(ConfigError, match=message):
        laplace_gates(net, data, pb.channel_groups(net, data.example), **options)
