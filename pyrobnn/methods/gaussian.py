"""`gaussian`: mean-field Gaussian weights, filters cut by their signal-to-noise ratio."""

from __future__ import annotations

from pyrobnn.guides.mean_field import MeanField
from pyrobnn.inference.recipe import is_large
from pyrobnn.inference.schedules import WarmUp
from pyrobnn.model import BayesianModel
from pyrobnn.pipeline.method import Method
from pyrobnn.priors.gaussian import Gaussian


def cold_kl(number: int, large: bool) -> WarmUp:
    """A cold posterior, warmed up in the first round only; later rounds go on at the weight reached.

    At weight 1 a few epochs of mean-field inference pull trained weights to the prior faster than the
    likelihood can answer. Deep normalised networks have more weights per example and less to spare.
    """
    return WarmUp(0.5 if number == 0 else 0.0, 0.0, 0.01 if large else 0.1)


def quick_scales(model: BayesianModel) -> MeanField:
    """In deep networks the means hardly move in the few epochs there are, so the scales must be quick."""
    return MeanField(model, init_scale=0.1, scale_lr=25.0 if is_large(model.net) else 1.0)


METHOD = Method(
    name="gaussian",
    title="mean-field Gaussian weights; filter SNR",
    source="Blundell et al. 2015 (Bayes by Backprop); local reparameterisation (Kingma et al. 2015) in small networks",
    cut_where="smallest part of what is left of the layer's squared SNR per cost saved (SNR < 1 without a target)",
    prior=lambda: Gaussian("fan_in"),
    guide=quick_scales,
    infer={"lr": 1e-3, "guide_lr": 1e-3, "lr_schedule": "constant"},
    infer_large={"lr": 2e-4, "guide_lr": 2e-4},
    kl=cold_kl,
    rounds=8,
    infer_share=0.25,
    estimator="local",
)
