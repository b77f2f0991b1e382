"""Channel-noise methods on the common road: `ard` (ours) and `sbp`."""

from __future__ import annotations

from typing import Any

from pyrobnn.guides.noise import NormalNoise, TruncatedLogNormalNoise
from pyrobnn.inference.events import Event
from pyrobnn.inference.pricing import PricedKL
from pyrobnn.methods.base import Method
from pyrobnn.priors.noise import ARDNoise, LogUniformNoise


def round_goal(run: Any, number: int) -> dict[str, float]:
    """What may be left after this round: a geometric step of the budget, or half of what there is."""
    request, share = run.request, (number + 1) / len(run.epochs.infer)
    if request.has_budget:
        targets = {"macs": request.target_macs, "params": request.target_params}
        return {name: value**share for name, value in targets.items() if value is not None}
    return {"macs": 0.5 * run.left()["macs"]}


def priced(run: Any, number: int) -> list[Event]:
    """KL by marginal price, with the multiplier set by dual ascent on the round's goal."""
    return [PricedKL(round_goal(run, number), run.dense_cost)]


ARD = Method(
    name="ard",
    title="ARD channel noise, KL priced by cost, budget by dual ascent",
    source="ours; KL of VIBNet (Dai et al. 2018)",
    cut_where="fewest nats per MAC (SNR < 1 without a target)",
    prior=ARDNoise,
    guide=lambda model: NormalNoise(model, init_scale=0.1),
    infer={"lr": 1e-3, "guide_lr": 1e-2, "lr_schedule": "constant"},
    infer_large={"lr": 3e-4, "guide_lr": 5e-3},
    rounds=8,
    events=priced,
    distil=0.7,
)

SBP = Method(
    name="sbp",
    title="truncated log-normal channel noise, log-uniform prior",
    source="Neklyudov et al. 2017 (released code); priced budget ours",
    cut_where="fewest nats per MAC (SNR < 1 without a target)",
    prior=LogUniformNoise,
    guide=lambda model: TruncatedLogNormalNoise(model, init_log_scale=-3.0),
    infer={"lr": 1e-3, "guide_lr": 1e-2, "lr_schedule": "constant"},
    infer_large={"lr": 3e-4, "guide_lr": 5e-3},
    rounds=8,
    events=priced,
    distil=0.7,
)
