"""The road of the iterative methods: cut the lowest few filters of every layer and train, until accuracy goes."""

from __future__ import annotations

from functools import partial

from pyrobnn.channels import PruningPlan
from pyrobnn.criteria.rules import plan
from pyrobnn.pipeline.acceptance import begin, finish, survives
from pyrobnn.pipeline.common import common_road
from pyrobnn.pipeline.run import Run
from pyrobnn.summary.state import from_state


def iterative_road(run: Run) -> None:
    """With a target the common road; without one, the loop of the papers, which stops by itself.

    Every round trains, checks that validation accuracy is still what can be expected to come back (the
    dense network's, less what tuning adds and what so few images can show), and cuts the same small share
    of every layer. The first round that fails is taken back. Two thirds of the tuning epochs go to the
    result; the rest is for the network before it, should tuning not bring the accuracy back.
    """
    if run.request.target:
        common_road(run)
        return
    begin(run)
    for number in range(len(run.epochs.infer)):
        run.infer(number)
        if not survives(run, number):
            break
        run.cut(number, partial(_lowest, run))
    last = run.epochs.tune // 3
    finish(run, run.epochs.tune - last, last)


def _lowest(run: Run) -> PruningPlan:
    """All but the lowest share of every group, one unit at the least."""
    posterior = from_state(run.carry["latest"])
    request, share = run.request, run.method.threshold
    assert share is not None
    return plan(posterior, "fraction", share, min_channels=request.min_channels, round_to=request.round_to)
