"""Re-estimated BatchNorm statistics against the statistics of the activations themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.data import Augment, Data


@pytest.fixture(scope="module")
def data() -> Data:
    full = pb.load_data("digits")
    return replace(full, train=full.train.take(256))


def test_statistics_of_the_first_layer(data: Data) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(180, 10)
    )
    with torch.no_grad():
        net[1].running_mean.fill_(7.0)
        net[1].running_var.fill_(9.0)
    before = {name: p.clone() for name, p in net.named_parameters()}
    net.eval()
    back = pb.reestimate_batchnorm(net, data.train, batch_size=64)
    x = data.train.normalise(data.train.images)
    with torch.no_grad():
        hidden = net[0](x)
    assert back is net and not any(m.training for m in net.modules())
    # Equal batches: the cumulative average of batch means is the mean over all images.
    assert torch.allclose(net[1].running_mean, hidden.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(net[1].running_var, hidden.var((0, 2, 3)), rtol=0.05)
    assert net[1].momentum == 0.1
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())


def test_images_are_shown_as_in_training(data: Data) -> None:
    """White images, shifted by up to two pixels both ways on both axes, keep (8 - 6/5)^2 of 64 pixels on average."""
    white = replace(data.train, images=torch.full_like(data.train.images, 255))
    norm = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    found = {}
    for name, augment in (("as they are", None), ("shifted", Augment(shift=2))):
        split = replace(white, augment=augment)
        pb.reestimate_batchnorm(norm, split, batch_size=64, examples=256)
        found[name] = float(norm[0].running_mean)
        pb.reestimate_batchnorm(norm, split, batch_size=64, examples=256, augment=False)
        assert float(norm[0].running_mean) == pytest.approx(found["as they are"])
    black = float(data.train.normalise(torch.zeros_like(data.train.images)).mean())
    kept = (found["shifted"] - black) / (found["as they are"] - black)
    assert kept == pytest.approx(6.8**2 / 64, abs=0.03)  # its standard error is 0.01


def test_examples_bound_the_passes_and_modes_come_back(data: Data) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)).train()
    net[0].eval()
    pb.reestimate_batchnorm(net, data.train, batch_size=32, examples=64)
    assert int(net[1].num_batches_tracked) == 2
    assert net[1].training and net[3].training and not net[0].training


def test_a_lone_last_example_is_left_out(data: Data) -> None:
    few = data.train.take(33)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 10))
    pb.reestimate_batchnorm(net, few, batch_size=32)
    assert int(net[2].num_batches_tracked) == 1 and bool(torch.isfinite(net[2].running_var).all())


def test_nothing_to_do(data: Data) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).train()
    assert pb.reestimate_batchnorm(plain, data.train) is plain and plain.training
    untracked = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten())
    assert pb.reestimate_batchnorm(untracked, data.train) is untracked


def test_a_cut_net_recovers(data: Data) -> None:
    """After a cut the second norm sees other inputs: measuring again brings its outputs back to unit scale."""
    torch.manual_seed(1)
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    pb.reestimate_batchnorm(net, data.train, batch_size=64)
    plan = pb.PruningPlan({"conv1": list(range(0, 16, 4))}, {"conv1": 16})
    small = pb.compact(net, plan, data.example).eval()
    x = data.train.normalise(data.train.images)

    def spread(module: nn.Module) -> float:
        with torch.no_grad():
            hidden = torch.max_pool2d(torch.relu(module.bn1(module.conv1(x))), 2)
            return float((module.bn2(module.conv2(hidden)).std((0, 2, 3)) - 1).abs().mean())

    off = spread(small)
    pb.reestimate_batchnorm(small, data.train, batch_size=64)
    assert off > 0.2 and spread(small) < 0.05


def test_the_same_seed_gives_the_same_bits(data: Data) -> None:
    torch.manual_seed(2)
    net = pb.nets.build("small_cnn", in_channels=1, image_size=8)
    runs = []
    for _ in range(2):
        torch.rand(3)
        pb.reestimate_batchnorm(net, data.train, batch_size=48, examples=96)
        runs.append(net.bn2.running_var.clone())
    assert torch.equal(*runs)


def test_a_small_last_batch_counts_by_its_images(data: Data) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)).eval()
    few = data.train.take(66)  # 64 and 2
    pb.reestimate_batchnorm(net, few, batch_size=64)
    with torch.no_grad():
        mean = net[0](few.normalise(few.images)).mean((0, 2, 3))
    assert torch.allclose(net[1].running_mean, mean, atol=1e-6)
