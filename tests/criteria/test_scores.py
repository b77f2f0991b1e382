"""Scores on the channel table: Torch-Pruning's importances, brute force, draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.channels import ChannelTable, GateMap
from pyrobnn.criteria.scores import (
    capped_l1_scores,
    fpgm_scores,
    l1_norms,
    moments_of,
    norm_scales,
    scored,
    taylor_scores,
)


class Residual(nn.Module):
    """Two convolutions whose outputs are added, then read by a third; BatchNorms that matter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.bn2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.back, self.bn3 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head1, self.head2 = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)))
        x = F.relu(x + self.bn3(self.back(F.relu(self.bn2(self.inner(x))))))
        return self.head2(F.relu(self.head1(x.mean((2, 3)))))


def example() -> tuple[Residual, ChannelTable, Tensor]:
    torch.manual_seed(0)
    net = Residual()
    for norm in (net.bn1, net.bn2, net.bn3):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
    x = torch.randn(16, 3, 8, 8)
    return net.eval(), pb.channel_groups(net, x[:2]), x


def theirs(net: nn.Module, x: Tensor, layer: nn.Module, importance: Any) -> Tensor:
    """Torch-Pruning's importance of all output channels of one layer."""
    prune = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
    graph = tp.DependencyGraph().build_dependency(net, x[:1])
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    found = importance(graph.get_pruning_group(layer, prune, idxs=list(range(width))))
    net.eval()
    return found.detach()


def test_agreement_with_torch_pruning() -> None:
    net, table, x = example()
    assert set(table.names) == {"stem", "inner", "head1"}
    first = {"group_reduction": "first", "normalizer": None}
    l1 = l1_norms(table, moments_of(net))
    norm = tp.importance.MagnitudeImportance(p=1, **first)
    for name, layers in {"stem": [net.stem, net.back], "inner": [net.inner], "head1": [net.head1]}.items():
        assert torch.allclose(l1[name], sum(theirs(net, x, layer, norm) for layer in layers), rtol=1e-5)
    scales = norm_scales(net, table)
    assert set(scales) == {"stem", "inner"}
    for name, layer in {"stem": net.stem, "inner": net.inner}.items():
        bn = tp.importance.BNScaleImportance(group_reduction="mean", normalizer=None)
        assert torch.allclose(scales[name], theirs(net, x, layer, bn))
    # Theirs takes distances between |w|^p; the paper's, and ours, are between the filters themselves.
    with torch.no_grad():
        for parameter in (net.inner.weight, net.head1.weight):
            parameter.abs_()
    geometric = fpgm_scores(net, table)
    median = tp.importance.FPGMImportance(p=1, **first)
    for name, layer in {"inner": net.inner, "head1": net.head1}.items():
        assert torch.allclose(geometric[name], theirs(net, x, layer, median), rtol=1e-3)
    y = torch.arange(16) % 5
    taylor = taylor_scores(net, table, [(x, y)])
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    gate = {"multivariable": True, "normalizer": None, "group_reduction": "sum"}
    # Only the readers: "inner" is read by a convolution, "head1" by a linear layer.
    for name, layer, reader in (("inner", net.inner, net.back), ("head1", net.head1, net.head2)):
        importance = tp.importance.GroupTaylorImportance(**gate, target_types=[type(reader)])
        everything = theirs(net, x, layer, importance)
        own = (layer.weight * layer.weight.grad).flatten(1).sum(1).abs().detach()
        assert torch.allclose(taylor[name], everything - own, rtol=1e-3, atol=1e-6)


def test_taylor_is_the_derivative_of_removal() -> None:
    """Finite differences of the loss in a gate, also where the readers are many and behind additions."""
    net, table, x = example()
    y = torch.arange(16) % 5
    found = taylor_scores(net, table, [(x[:8], y[:8]), (x[8:], y[8:])])
    gates = GateMap(table)

    def loss(group: str, unit: int, value: float, part: slice) -> float:
        factor = torch.ones(table[group].channels, dtype=torch.float64)
        factor[unit] = value
        double = {n: t.double() for n, t in (*net.named_parameters(), *net.named_buffers()) if t.is_floating_point()}
        with torch.no_grad():
            out = torch.func.functional_call(net, gates.apply(double, {group: factor}), (x[part].double(),))
        return float(F.cross_entropy(out, y[part]))

    for group, unit in (("stem", 3), ("inner", 0), ("head1", 7)):
        halves = [
            (loss(group, unit, 1 + 1e-5, part) - loss(group, unit, 1 - 1e-5, part)) / 2e-5
            for part in (slice(0, 8), slice(8, 16))
        ]
        wanted = (0.5 * sum(h * h for h in halves)) ** 0.5
        assert float(found[group][unit]) == pytest.approx(wanted, rel=1e-3, abs=1e-7)


def test_fpgm_by_brute_force_and_copies_are_free() -> None:
    net, table, _ = example()
    with torch.no_grad():
        net.inner.weight[1:] = net.inner.weight[:1]  # five copies and one
        net.inner.weight[5] += 1.0
    rows = net.inner.weight.detach().flatten(1)
    wanted = torch.stack([(rows - row).norm(dim=1).sum() for row in rows])
    found = fpgm_scores(net, table)["inner"]
    assert torch.allclose(found, wanted, rtol=1e-5) and int(found.argmax()) == 5


def test_the_capped_part_prefers_many_useful_taps() -> None:
    """Two filters of equal L1 norm: one giant tap, or many small ones."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    table = pb.channel_groups(net, torch.randn(2, 1, 8, 8))
    with torch.no_grad():
        net[0].weight.fill_(0.1)
        net[0].weight[0] = 0.0
        net[0].weight[0, 0, 1, 1] = 0.9
    moments = moments_of(net)
    (name,) = table.names
    plain, half, capped = (capped_l1_scores(table, moments, mix=mix)[name] for mix in (0.0, 0.5, 1.0))
    assert float(plain[0]) == pytest.approx(float(plain[1]), rel=1e-5)
    assert float(half[0]) < float(half[1])
    assert capped.tolist() == pytest.approx([0.1, 0.9, 0.9, 0.9])  # the median magnitude is 0.1
    assert torch.allclose(half, 0.5 * (plain + capped))


def test_expected_scores_are_those_of_draws() -> None:
    net, table, _ = example()
    loc = net.inner.weight.detach()
    moments: dict[str, tuple[Tensor, Tensor]] = moments_of(net)
    moments["inner.weight"] = (loc, 0.5 * loc.abs().flip(0) + 0.02)
    generator = torch.Generator().manual_seed(0)
    draws = loc + moments["inner.weight"][1] * torch.randn((20_000, *loc.shape), generator=generator)
    cap = loc.abs().median()
    sample = (0.5 * draws.abs() + 0.5 * draws.abs().clamp_max(cap)).flatten(2).sum(2).mean(0)
    expected = capped_l1_scores(table, moments)["inner"]
    assert torch.allclose(expected, sample, rtol=5e-3)
    means = capped_l1_scores(table, moments, expected=False)["inner"]
    assert bool((expected > means).all())  # a magnitude is convex, a capped one nearly


def test_scored_replaces_the_statistic_of_named_groups() -> None:
    net, table, _ = example()
    model = pb.BayesianModel(net, pb.priors.Gaussian(1.0), data_size=10, groups=table)
    before = pb.summarize(model, pb.guides.MeanField(model), draws=0)
    after = scored(before, {"inner": torch.arange(6.0)}, table)
    assert after.channels["inner"].statistic == "score" and after.channels["inner"].evidence is None
    assert after.channels["inner"].snr.tolist() == [0, 1, 2, 3, 4, 5]
    assert after.channels["stem"] is before.channels["stem"] and before.channels["inner"].statistic == "snr"
    # The residual group has two producers, so its channels are lost in both.
    both = scored(before, {name: torch.ones(table[name].channels) for name in ("stem", "head1")}, table).channels
    assert torch.allclose(both["stem"].nats, torch.full((8,), 2 / 8))
    assert torch.allclose(both["head1"].nats, torch.full((12,), 1 / 12))
    kept = pb.plan(after, "fraction", 0.5).keep["inner"]
    assert kept == [3, 4, 5]
