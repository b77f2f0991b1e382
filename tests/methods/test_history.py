"""The history of filter norms and the pairs chosen from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.criteria.pairs import eliminate, history_distances
from pyrobnn.data import Data
from pyrobnn.errors import ConfigError
from pyrobnn.guides.function import NoLatents
from pyrobnn.inference.callbacks import Callback
from pyrobnn.methods.history import NormHistory, SimilarPairs


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(256))


def pair(bayesian: bool = False) -> tuple[pb.BayesianModel, Any]:
    torch.manual_seed(3)
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    table = pb.channel_groups(net, torch.randn(2, 1, 8, 8))
    model = pb.BayesianModel(net, pb.priors.Gaussian("fan_in") if bayesian else None, data_size=256, groups=table)
    return model, pb.guides.MeanField(model) if bayesian else NoLatents()


def l1(net: nn.Module, name: str) -> torch.Tensor:
    return net.get_submodule(name).weight.detach().flatten(1).abs().sum(1)


class Watch(Callback):
    """Keeps the network's norms after every epoch, by other means."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_epoch_end(self, loop: Any) -> None:
        self.seen.append(l1(loop.model.net, "conv2"))


def test_records_are_the_norms_at_that_time(data: Data) -> None:
    model, guide = pair()
    start = l1(model.net, "conv2")
    history, watch = NormHistory(per_epoch=2), Watch()
    pb.fit(model, guide, data, epochs=3, batch_size=32, lr=1e-2, events=[history, watch], progress=False)
    assert {name: tuple(norms.shape) for name, norms in history.norms.items()} == {
        "conv1": (7, 16),
        "conv2": (7, 32),
        "fc1": (7, 64),
    }
    assert torch.allclose(history.norms["conv2"][0], start)
    for epoch, norms in enumerate(watch.seen):
        assert torch.allclose(history.norms["conv2"][2 * (epoch + 1)], norms)
    assert not torch.allclose(history.norms["conv2"][0], history.norms["conv2"][-1], rtol=1e-3)


def test_a_posterior_has_expected_norms_and_its_own_distance(data: Data) -> None:
    model, guide = pair(bayesian=True)
    history = NormHistory(per_epoch=1, distance="kl")
    pb.fit(model, guide, data, epochs=1, batch_size=64, lr=1e-3, events=[history], progress=False)
    loc, scale = guide.moments()["conv1.weight"]
    draws = (loc + scale * torch.randn(20_000, *loc.shape)).abs().flatten(2).sum(2).mean(0)
    assert torch.allclose(history.norms["conv1"][-1], draws, rtol=0.01)
    assert history.apart["conv1"].shape == (16, 16)
    by_norm = eliminate(history_distances(history.norms["conv1"]), history.norms["conv1"].sum(0))
    by_kl = history.eliminations()["conv1"]
    assert by_kl.pairs.tolist() != by_norm.pairs.tolist()
    assert float(by_kl.distances[0]) == pytest.approx(float((history.apart["conv1"] + 1e9 * torch.eye(16)).min()))


def run(data: Data, epochs: int = 4, **settings: Any) -> tuple[NormHistory, SimilarPairs, Any]:
    model, guide = pair()
    history = NormHistory()
    similar = SimilarPairs(history, 0.25, **settings)
    result = pb.fit(
        model, guide, data, epochs=epochs, batch_size=32, lr=1e-3, events=[history, similar], progress=False
    )
    return history, similar, result


def test_pairs_are_chosen_from_the_history_before_the_penalty(data: Data) -> None:
    history, similar, _ = run(data, start=0.5)
    norms = history.norms["conv2"]
    half = norms[: 1 + len(norms) // 2]
    wanted = eliminate(history_distances(half), half.sum(0))
    assert similar.orders["conv2"].pairs.tolist() == wanted.pairs.tolist()
    assert similar.chosen("conv2").tolist() == wanted.pairs[:8].tolist()


def test_the_gradient_makes_pairs_more_similar(data: Data) -> None:
    def gaps(result: Any, similar: SimilarPairs) -> float:
        with torch.no_grad():
            return float(similar.distance(result.model, result.guide))

    _, similar, result = run(data, start=0.25, weight=1.0)
    _, constant, control = run(data, start=0.25, weight=1.0, gradient=False)
    _, nothing, plain = run(data, start=0.25, weight=0.0)
    assert {n: o.pairs.tolist() for n, o in similar.orders.items()} == {
        n: o.pairs.tolist() for n, o in constant.orders.items()
    }
    assert gaps(result, similar) < 0.5 * gaps(control, constant)
    # The constant of the authors' code leaves the training as it is without any penalty.
    assert gaps(control, constant) == pytest.approx(gaps(plain, nothing), rel=1e-6)


def test_the_penalty_by_hand() -> None:
    model, guide = pair()
    similar = SimilarPairs(NormHistory(), 0.1)
    norms = {name: l1(model.net, name) for name in ("conv1", "conv2", "fc1")}
    similar.orders = {name: eliminate(history_distances(n[None]), n) for name, n in norms.items()}
    wanted = 0.0
    for name, n in norms.items():
        pairs = similar.orders[name].pairs[: len(n) // 10].tolist()
        wanted += sum(abs(float(n[i] - n[j])) for i, j in pairs) / len(pairs) / float(n.mean())
    assert float(similar.distance(model, guide).detach()) == pytest.approx(wanted, rel=1e-4)


def test_a_random_weight_is_penalised_by_its_expected_norm() -> None:
    model, guide = pair(bayesian=True)
    similar = SimilarPairs(NormHistory(), 0.1)
    norms = l1(model.net, "fc1")
    similar.orders = {"fc1": eliminate(history_distances(norms[None]), norms)}
    similar.distance(model, guide).backward()
    key = "fc1|weight"
    rows = guide.loc[key].grad.abs().sum(1).nonzero().flatten().tolist()
    assert set(rows) == set(similar.chosen("fc1").flatten().tolist())
    assert guide.log_scale[key].grad is not None and bool(guide.log_scale[key].grad.any())


def test_a_resumed_fit_remembers(data: Data, tmp_path: Any) -> None:
    def events() -> list[Callback]:
        history = NormHistory(1)
        return [history, SimilarPairs(history, 0.25, start=0.25)]

    whole, settings = events(), {"batch_size": 32, "lr": 1e-2, "progress": False}
    pb.fit(*pair(), data, epochs=4, lr_schedule="constant", events=whole, **settings)

    class Stop(Callback):
        def __init__(self, epoch: int) -> None:
            self.epoch = epoch

        def on_epoch_end(self, loop: Any) -> None:
            if loop.epoch == self.epoch:
                raise KeyboardInterrupt

    path, again = tmp_path / "c.pt", events()
    with pytest.raises(KeyboardInterrupt):
        pb.fit(
            *pair(), data, epochs=4, lr_schedule="constant", events=[*events(), Stop(3)], checkpoint=path, **settings
        )
    pb.fit(
        *pair(),
        data,
        epochs=4,
        lr_schedule="constant",
        events=[*again, Stop(9)],
        checkpoint=path,
        resume=True,
        **settings,
    )
    assert torch.equal(again[0].norms["fc1"], whole[0].norms["fc1"])
    assert torch.equal(again[1].orders["fc1"].pairs, whole[1].orders["fc1"].pairs)
    # The next round starts afresh.
    later = NormHistory(2)
    later.load_state_dict(whole[0].state_dict())
    assert later.norms == {}


def test_bad_settings(data: Data) -> None:
    with pytest.raises(ConfigError, match="'norm' or 'kl'"):
        NormHistory(distance="l2")
    with pytest.raises(ConfigError, match="fraction"):
        SimilarPairs(NormHistory(), 1.5)
    with pytest.raises(ConfigError, match="no weight is random"):
        pb.fit(*pair(), data, epochs=1, events=[NormHistory(distance="kl")], progress=False)
