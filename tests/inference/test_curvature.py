"""Fisher information of gates: against autograd one example at a time, and against known curvatures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import pyrobnn as pb
from pyrobnn.channels import ChannelTable, GateMap
from pyrobnn.errors import ConfigError
from pyrobnn.inference import curvature
from pyrobnn.inference.curvature import gate_fisher, gate_gradients
from pyrobnn.nets.channel_map import ChannelMap


class Residual(nn.Module):
    """A stage change through a channel map, a sum, a grouped convolution, a concat that is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.wide, self.map = nn.Conv2d(4, 8, 3, stride=2, padding=1), ChannelMap(4, 8, offset=2)
        self.grouped, self.side = nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.Conv2d(8, 3, 1)
        self.head = nn.Linear(9 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.wide(x) + self.map(x[:, :, ::2, ::2]))
        return self.head(torch.cat([F.relu(self.grouped(x)), F.gelu(self.side(x))], 1).flatten(1))


def up_down() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


class Pixels(nn.Module):
    """Pixels become rows of a batch of their own: no factor per image on what the linear layer gets."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pixel, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.relu(self.first(x)).permute(0, 2, 3, 1).reshape(-1, self.pixel.in_features)
        return self.head(F.relu(self.pixel(rows)).reshape(x.shape[0], -1))


def by_hand(net: nn.Module, table: ChannelTable, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """One example, one channel at a time: central differences of log p in the gate, float64."""
    gates, h = GateMap(table), 1e-5
    tensors = {n: t.detach() for n, t in (*net.named_parameters(), *net.named_buffers())}

    def logp(factors: dict[str, Tensor]) -> Tensor:
        return -F.cross_entropy(functional_call(net, gates.apply(tensors, factors), (x,)), y, reduction="none")

    found = {}
    for group in table:
        columns = []
        for channel in range(group.channels):
            up, down = (torch.ones(group.channels, dtype=x.dtype) for _ in range(2))
            up[channel], down[channel] = 1 + h, 1 - h
            columns.append((logp({group.name: up}) - logp({group.name: down})) / (2 * h))
        found[group.name] = torch.stack(columns, 1)
    return found


@pytest.mark.parametrize("make", [Residual, up_down, Pixels])
def test_gradients_of_every_example_are_those_of_the_network_alone(make, monkeypatch):
    net = make().double().eval()
    x, y = torch.randn(5, 2, 4, 4, dtype=torch.float64), torch.randint(5, (5,))
    table = pb.channel_groups(net.float(), x[:2].float())
    net.double()
    assert len(table) >= 2
    slow = curvature._one_by_one
    used = []
    monkeypatch.setattr(curvature, "_one_by_one", lambda *args: used.append(1) or slow(*args))
    (found,) = gate_gradients(net, table, x, lambda out: [-F.cross_entropy(out, y, reduction="none")])
    for name, expected in by_hand(net, table, x, y).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-8)
    assert bool(used) == (make is Pixels)  # the others in one backward pass


def test_gradients_of_readers_add_up_before_they_are_squared():
    """Two readers that cancel: the channel is worth nothing, whatever each of them is worth."""

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.plus, self.minus = (
                nn.Linear(3, 4),
                nn.Linear(4, 5, bias=False),
                nn.Linear(4, 5, bias=False),
            )
            self.minus.weight.data[:, 0] = -self.plus.weight.data[:, 0]

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.first(x))
            return self.plus(h) + self.minus(h)

    net, x = Cancelling(), torch.randn(50, 3)
    fisher = gate_fisher(net, pb.channel_groups(net, x[:2]), [x], data_size=50)
    assert float(fisher.diagonal["first"][0]) < 1e-9
    assert bool((fisher.diagonal["first"][1:] > 1e-3).all())


def test_fisher_is_the_curvature_of_a_linear_model():
    """f = W (θ h) with Gaussian targets: F = N E[(h_c)² |w_c|²] exactly, blocks with their cross terms."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(400, 3, dtype=torch.float64)
    table = pb.channel_groups(net.float(), x[:2].float())
    net.double()
    found = gate_fisher(
        net, table, x.split(100), data_size=1000, draws=200, blocks=True, likelihood=pb.likelihoods.Gaussian(0.5)
    )
    h, w = net[1](net[0](x)).detach(), net[2].weight.detach()
    exact = 1000 * (h.T @ h / len(x)) * (w.T @ w) / 0.25
    assert found.blocks is not None
    torch.testing.assert_close(found.diagonal["0"], exact.diagonal(), rtol=0.05, atol=1.0)
    torch.testing.assert_close(found.blocks["0"], exact, rtol=0.05, atol=0.05 * float(exact.max()))
    torch.testing.assert_close(found.blocks["0"].diagonal(), found.diagonal["0"])


def test_labels_come_from_the_network_or_from_the_data():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6))
    x, y = torch.randn(300, 3), torch.randint(6, (300,))
    table = pb.channel_groups(net, x[:2])
    batches = [(x[:200], y[:200]), (x[200:], y[200:])]
    state, mode = torch.get_rng_state(), [m.training for m in net.modules()]
    data = gate_fisher(net, table, batches, data_size=300, labels="data")
    (g,) = gate_gradients(net, table, x, lambda out: [-F.cross_entropy(out, y, reduction="none")])
    torch.testing.assert_close(data.diagonal["0"], g["0"].double().square().sum(0), rtol=1e-4, atol=1e-6)
    model = gate_fisher(net, table, batches, data_size=300, temperature=4.0)
    again = gate_fisher(net, table, batches, data_size=300, temperature=4.0)
    assert torch.equal(model.diagonal["0"], again.diagonal["0"]) and torch.equal(torch.get_rng_state(), state)
    assert model.softened is not None and not torch.equal(model.diagonal["0"], model.softened["0"].diagonal())
    assert not torch.equal(model.diagonal["0"], data.diagonal["0"])
    assert mode == [m.training for m in net.modules()] and all(
        p.requires_grad and p.grad is None for p in net.parameters()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "none"}, "'model' or 'data'"),
        ({"draws": 0}, "one draw"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": 2.0, "likelihood": pb.likelihoods.Gaussian()}, "temperature"),
        ({"labels": "data"}, "with labels"),
    ],
)
def test_bad_settings_are_refused_in_a_line(options, message):
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 3)
    with pytest.raises(ConfigError, match=message):
        gate_fisher(net, pb.channel_groups(net, x[:2]), [x], data_size=8, **options)
    with pytest.raises(ConfigError, match="at least one image"):
        gate_fisher(net, pb.channel_groups(net, x[:2]), [], data_size=8)


def test_regression_draws_with_the_scale_of_its_residuals():
    """A noise scale of the residuals: F is that of a Gaussian with this scale, not the 0 of targets at the means."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(400, 3)
    y = net(x).detach() + 0.3 * torch.randn(400, 2)
    table = pb.channel_groups(net, x[:2])
    profiled = gate_fisher(net, table, [(x, y)], data_size=400, draws=60, likelihood=pb.likelihoods.Gaussian(None))
    fixed = gate_fisher(net, table, [(x, y)], data_size=400, draws=60, likelihood=pb.likelihoods.Gaussian(0.3))
    torch.testing.assert_close(profiled.diagonal["0"], fixed.diagonal["0"], rtol=0.15, atol=1.0)
    with pytest.raises(ConfigError, match="needs batches of inputs with targets"):
        gate_fisher(net, table, [x], data_size=400, likelihood=pb.likelihoods.Gaussian(None))


def test_the_main_one_of_several_outputs_is_judged():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.side = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = F.relu(self.first(x))
            return {"side": self.side(h), "logits": self.head(h)}

    net, x = Two(), torch.randn(60, 3)
    alone = nn.Sequential(net.first, nn.ReLU(), net.head)
    both = gate_fisher(net, pb.channel_groups(net, x[:2]), [x], data_size=60).diagonal["first"]
    torch.testing.assert_close(
        both, gate_fisher(alone, pb.channel_groups(alone, x[:2]), [x], data_size=60).diagonal["0"]
    )
