"""`gaussian`: mean-field Gaussian weights, filters cut by their signal-to-noise ratio."""

from __future__ import annotations

from pyrobnn.guides.mean_field import MeanField
from pyrobnn.inference.schedules import WarmUp
from pyrobnn.methods.base import Method
from pyrobnn.priors.gaussian import Gaussian


def _kl(number: int) -> WarmUp:
    """Warm up in the first round only; later rounds go on at the weight reached."""
    return WarmUp(0.5 if number == 0 else 0.0, 0.0, 0.1)


METHOD = Method(
    name="gaussian",
    title="mean-field Gaussian weights; filter SNR",
    source="Blundell et al. 2015 (Bayes by Backprop) with the local reparameterisation of Kingma et al. 2015",
    cut_where="filter SNR lowest (< 1 without a target), or evidence",
    prior=lambda: Gaussian("fan_in"),
    guide=lambda model: MeanField(model, init_scale=0.1),
    infer={"lr": 1e-3, "guide_lr": 1e-3, "lr_schedule": "constant"},
    infer_large={"lr": 2e-4, "guide_lr": 2e-4},
    kl=_kl,
    rounds=8,
    estimator="local",
)
