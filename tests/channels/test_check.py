"""A difference that only real images show stops the run, with the group's name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyrobnn.channels import PruningPlan, channel_groups, check_cut, compact
from pyrobnn.errors import PlanError


class Bright(nn.Module):
    """Divides one activation by its number of channels where images are bright, which no trial shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu()).relu()
        if float(x.mean()) > 10:
            y = y / y.shape[1]
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_a_difference_on_real_images_names_its_group(training: bool) -> None:
    net, x = Bright().train(training), torch.rand(4, 3, 8, 8)
    table = channel_groups(net, x)
    plan = PruningPlan({"a": [0, 2, 3], "b": [1, 5]}, {"a": 8, "b": 8})
    small = compact(net, plan, None, table)
    before = x.clone(), torch.get_rng_state()
    check_cut(net, small, plan, table, x)
    assert torch.equal(x, before[0]) and torch.equal(torch.get_rng_state(), before[1]) and net.training == training
    with pytest.raises(PlanError, match=r"group 'b' cannot be cut on these images \(compact differs from mask"):
        check_cut(net, small, plan, table, x + 20)


def test_nothing_is_compared_where_nothing_is_cut() -> None:
    net, x = Bright(), torch.rand(4, 3, 8, 8)
    table = channel_groups(net, x)
    check_cut(net, nn.Identity(), PruningPlan.full(table), table, x)
