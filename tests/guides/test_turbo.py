"""The Turbo-VBI guide on convolutional networks: what it reads off, cutting, its state, wrong use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan, channel_groups
from pyrobnn.errors import ConfigError
from pyrobnn.guides.turbo import TurboGuide
from pyrobnn.guides.turbo_factors import HeldFactor
from pyrobnn.inference.elbo import ELBO
from pyrobnn.inference.shrink import shrink
from pyrobnn.model import BayesianModel
from pyrobnn.priors.gaussian import Gaussian
from pyrobnn.priors.turbo import Transitions, Turbo


def conv_pair() -> tuple[BayesianModel, TurboGuide, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )
    with torch.no_grad():
        net[0].weight[[1, 4]] *= 1e-4  # two dead filters
    example = torch.randn(2, 1, 8, 8)
    table = channel_groups(net, example)
    model = BayesianModel(net, Turbo(), data_size=50, groups=table)
    return model, TurboGuide(model), example


def test_inclusion_reads_the_filters() -> None:
    _, guide, _ = conv_pair()
    inclusion = guide.inclusion()
    assert set(inclusion) == {"0", "2"}
    assert (inclusion["0"] < 0.5).tolist() == [False, True, False, False, True, False]
    masks = guide.support_masks()
    assert not masks["0.weight"][[1, 4]].any()
    assert torch.equal(guide.masked_means()["0.weight"] != 0, masks["0.weight"])


def test_shrink_cuts_the_guide_with_the_network() -> None:
    model, guide, example = conv_pair()
    plan = PruningPlan({"0": [0, 2, 3, 5], "2": [1, 2]}, {"0": 6, "2": 4})
    small_model, small = shrink(model, guide, plan)
    assert small.loc["0|weight"].shape == (4, 1, 3, 3)
    assert small.support["2|weight"].shape == (2, 4, 3, 3)
    torch.testing.assert_close(small.loc["2|weight"], guide.loc["2|weight"][[1, 2]][:, [0, 2, 3, 5]])
    assert {name: len(p) for name, p in small.inclusion().items()} == {"0": 4, "2": 2}
    assert (small.inclusion()["0"] > 0.5).all()
    # The sites still fit, and the KL is that of the shorter chains.
    y = torch.zeros(2, dtype=torch.long)
    parts = ELBO().parts(small_model, small, example, y)
    found = small.messages("0.weight", small._evidence("0.weight", small._square("0.weight")))
    expected = (found.posterior.sigmoid() * found.evidence).sum() - found.log_normaliser
    torch.testing.assert_close(parts.kl["0.weight.support"], expected)
    again = small.shrink(small_model.groups, PruningPlan({"0": [3]}, {"0": 4}))
    assert again.loc["2|weight"].shape == (2, 1, 3, 3) and len(again.inclusion()["0"]) == 1


def test_state_dict_carries_everything() -> None:
    model, guide, _ = conv_pair()
    guide.set_off_rate(1e-3)
    guide.update(inner=2, learn=True)
    other = TurboGuide(model)
    other.load_state_dict(guide.state_dict())
    for (name, a), (_, b) in zip(guide.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    assert other.transitions_of("0.weight") == guide.transitions_of("0.weight") != Transitions()
    guide.update(inner=2)
    other.update(inner=2)
    assert torch.equal(guide.support["5|weight"], other.support["5|weight"])


def test_crossing_structure_runs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8))
    with torch.no_grad():
        net[0].weight[:4] *= 1e-4
    model = BayesianModel(net, Turbo(structure="crossing", transitions=Transitions(0.3, 0.3, 0.3, 0.3)), data_size=9)
    guide = TurboGuide(model)
    guide.update()
    mask = guide.support_masks()["0.weight"]
    assert not mask[:4].any() and mask[4:].float().mean() > 0.8
    assert all(
        torch.isfinite(v) for v in ELBO().parts(model, guide, torch.zeros(2, 12), torch.zeros(2).long()).kl.values()
    )


def test_wrong_use_is_refused() -> None:
    model, guide, _ = conv_pair()
    plain = BayesianModel(nn.Sequential(nn.Linear(2, 2)), Gaussian(1.0), data_size=3)
    with pytest.raises(ConfigError, match="Turbo prior"):
        TurboGuide(plain)
    with pytest.raises(ConfigError, match="factors"):
        TurboGuide(model, factors="both")
    with pytest.raises(ConfigError, match="init_scale"):
        TurboGuide(model, init_scale=0.0)
    with pytest.raises(ConfigError, match="larger precision"):
        guide.set_off_rate(5.0)
    with pytest.raises(ConfigError, match="one value"):
        HeldFactor(torch.zeros(2), torch.zeros(())).expand([3])


# What the read-off looks at


def net_pair() -> tuple[BayesianModel, TurboGuide]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    with torch.no_grad():
        net[0].weight[1] *= 1e-4  # a filter without support
        net[2].weight[:, 2:] *= 1e-4
    model = BayesianModel(net, Turbo(), data_size=100, groups=channel_groups(net, torch.zeros(2, 1, 6, 6)))
    return model, TurboGuide(model, scale_lr=5.0, init_scale=1e-4)


def test_odds_of_weights_are_those_of_the_support() -> None:
    guide = net_pair()[1]
    odds, support = guide.weight_odds(), guide.support_masks()
    for name in ("0.weight", "2.weight", "5.weight"):
        key = name.replace(".", "|")
        assert torch.allclose(odds[name].sigmoid(), guide.support[key], atol=1e-4)
        assert torch.equal(odds[name] > 0, support[name])
        assert torch.allclose(odds[name] - guide.weight_evidence()[name], guide.extrinsic[key], atol=1e-3)
    assert not bool(support["0.weight"][1].any()) and bool(support["0.weight"][0].any())


def test_shares_are_those_of_the_evidence_of_a_group() -> None:
    guide = net_pair()[1]
    nats = guide.shares()
    for group, name in (("0", "0.weight"), ("2", "2.weight")):
        rows = torch.stack([torch.log1p(filter.double().exp()).sum() for filter in guide.weight_odds()[name]])
        assert torch.allclose(nats[group].double(), rows / rows.sum(), atol=1e-5)
    assert int(nats["0"].argmin()) == 1 and float(nats["0"].sum()) == pytest.approx(1.0)


def test_a_later_round_keeps_the_unit_of_the_first() -> None:
    model, guide = net_pair()
    plan = PruningPlan({"0": [0, 2], "2": [1, 3]}, {"0": 4, "2": 6})
    small, _ = shrink(model, guide, plan)
    prior = Turbo()
    prior.load_state_dict(model.prior.state_dict())
    later = TurboGuide(BayesianModel(small.deterministic({}), prior, data_size=100, groups=small.groups))
    for name in ("0.weight", "2.weight", "5.weight"):
        assert later.precision_prior(name) == guide.precision_prior(name)


def test_scales_have_their_own_learning_rate() -> None:
    guide = net_pair()[1]
    assert {guide.lr_factor(name) for name, _ in guide.named_parameters() if name.startswith("log_scale")} == {5.0}
    assert {guide.lr_factor(name) for name, _ in guide.named_parameters() if name.startswith("loc")} == {1.0}
    with pytest.raises(ConfigError, match="scale_lr"):
        TurboGuide(net_pair()[0], scale_lr=0.0)


def test_a_bound_on_the_support_by_exhaustive_search() -> None:
    """The price is the smallest (to the tolerance) at which at most `count` weights stay; 0 where nothing binds."""
    guide = net_pair()[1]
    with torch.no_grad():
        for value in guide.loc.values():
            value.copy_(0.3 * torch.randn_like(value).exp() * torch.randn_like(value).sign())
    guide.update()
    free = sum(int(mask.sum()) for mask in guide.support_masks().values())

    def size() -> int:
        guide.update()
        return sum(int((odds > 0).sum()) for odds in guide.weight_odds().values())

    for count in (free // 2, free // 4, free // 2):  # up and down again
        price = guide.bound(count, tries=30)
        assert price > 0 and count >= size() >= 0.8 * count
        guide.price.fill_(price - 1.0)
        assert size() > count  # a nat less is too little
    assert guide.bound(2 * free) == 0.0 and size() == free
