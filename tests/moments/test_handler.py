"""The effect handler: what the trace records and what the network sees."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

from pyrobnn.errors import ConfigError
from pyrobnn.moments import MomentMessenger, Moments

SEEN: dict[str, type] = {}


def model(x: Tensor) -> Tensor:
    w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    s = pyro.sample("s", dist.LogNormal(torch.zeros(()), 1.0))
    SEEN.update(w=type(w), s=type(s))
    out = F.linear(x, w * s)
    pyro.sample("obs", dist.Normal(out, 1.0).to_event(2), obs=torch.zeros(len(x), 2))
    return out


def guide(x: Tensor) -> None:
    with poutine.mask(mask=True):
        pyro.sample("w", dist.Normal(torch.ones(2, 3), 0.5).to_event(2))
    pyro.sample("s", dist.LogNormal(torch.zeros(()), 0.1))


def run(guide_function, x: Tensor, **options):  # type: ignore[no-untyped-def]
    guide_trace = poutine.trace(guide_function).get_trace(x)
    handler = MomentMessenger(guide_trace, **options)
    replayed = poutine.replay(handler(model), trace=guide_trace)
    return guide_trace, poutine.trace(replayed).get_trace(x), handler


def test_trace_keeps_the_sample_and_the_network_sees_moments() -> None:
    pyro.set_rng_seed(0)
    guide_trace, trace, _ = run(guide, torch.ones(4, 3))
    assert {"w": Moments, "s": Tensor} == SEEN
    assert type(trace.nodes["w"]["value"]) is Tensor
    assert trace.nodes["w"]["value"] is guide_trace.nodes["w"]["value"]
    trace.compute_log_prob()
    # locally reparameterised: equal rows of x give different rows of output
    out = trace.nodes["_RETURN"]["value"]
    assert type(out) is Tensor and not torch.equal(out[0], out[1])


def test_handler_outside_replay_works_too() -> None:
    x = torch.ones(2, 3)
    guide_trace = poutine.trace(guide).get_trace(x)
    handled = MomentMessenger(guide_trace)(poutine.replay(model, trace=guide_trace))
    trace = poutine.trace(handled).get_trace(x)
    assert SEEN["w"] is Moments
    assert trace.nodes["w"]["value"] is guide_trace.nodes["w"]["value"]


def test_moments_mode_and_selection() -> None:
    _, _trace, _ = run(guide, torch.ones(2, 3), mode="moments", select=lambda name: name == "s")
    assert SEEN["w"] is Tensor
    guide_trace = poutine.trace(guide).get_trace(torch.ones(2, 3))
    scale = guide_trace.nodes["s"]["value"]
    with MomentMessenger(guide_trace, mode="moments"):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        s = pyro.sample("s", dist.Delta(scale))
    out = F.linear(torch.ones(2, 3), w * s)
    torch.testing.assert_close(out.loc, torch.full((2, 2), 3.0) * scale)
    torch.testing.assert_close(out.variance, torch.full((2, 2), 0.75) * scale**2)


def test_auto_normal_uses_its_auxiliary_only_without_a_transform() -> None:
    auto = AutoNormal(model, init_scale=0.3)
    guide_trace, _trace, _ = run(auto, torch.ones(2, 3))
    assert {"w": Moments, "s": Tensor} == SEEN  # s is positive: its auxiliary is not its value
    with MomentMessenger(guide_trace):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    torch.testing.assert_close(w.variance, torch.full((2, 3), 0.09))
    torch.testing.assert_close(w.loc, auto.locs.w.detach())


def test_point_estimates_keep_their_value() -> None:
    run(AutoDelta(model), torch.ones(2, 3))
    assert {"w": Tensor, "s": Tensor} == SEEN


def test_expanded_scale_stays_one_variance_per_filter() -> None:
    scale = torch.tensor([[0.1], [0.2]])
    guide_trace = poutine.trace(lambda: pyro.sample("w", dist.Normal(torch.zeros(2, 3), scale).to_event(2))).get_trace()
    with MomentMessenger(guide_trace):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    assert w.variance.stride()[1] == 0
    torch.testing.assert_close(w.variance, scale.square().expand(2, 3))


def test_gradients_reach_the_guide() -> None:
    loc, log_scale = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)

    def learned(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(loc, log_scale.exp()).to_event(2))
        pyro.sample("s", dist.LogNormal(torch.zeros(()), 0.1))

    _, trace, _ = run(learned, torch.randn(5, 3))
    trace.nodes["_RETURN"]["value"].square().sum().backward()
    assert (loc.grad != 0).all() and (log_scale.grad != 0).all()


def test_second_uses_are_learnt_by_the_given_set() -> None:
    guide_trace = poutine.trace(guide).get_trace(torch.ones(1, 3))
    shared: set[str] = set()
    for first_differs in (True, False):
        with MomentMessenger(guide_trace, shared=shared):
            w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        a, b = F.linear(torch.ones(1, 3), w), F.linear(torch.ones(1, 3), w)
        assert shared == {"w"}
        assert torch.equal(a, b) is not first_differs


def test_unknown_mode() -> None:
    with pytest.raises(ConfigError, match="expected 'local' or 'moments', got 'flipout'"):
        MomentMessenger(poutine.trace(lambda: None).get_trace(), mode="flipout")  # type: ignore[arg-type]
